"""The lab's keeper: the process inside the lab's namespaces above libvirtd and all that libvirtd starts.

It is a child subreaper and reaps at once: libvirt waits until a QEMU that it stopped is out of the process table,
and where PID 1 reaps late (seen: 2 s) each save and destroy, and the guest's pause, would look that much longer.

Run as `unshare --mount --net --uts ... python -m vmferry.lab.hosts.subreaper AT`. SIGUSR1 starts libvirtd if none
runs; the keeper ends only by SIGKILL, when the lab is taken down. A node that is no host has a keeper without libvirtd.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vmferry.lab.hosts.record import LabRecord, read_record
from vmferry.lab.programs import program, run

PR_SET_CHILD_SUBREAPER = 36
# /run as a whole: libvirtd keeps a pid file in it, and would talk to the machine's D-Bus and systemd through it.
BOUND = {
    "run": "/run",
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "ca": "/var/lib/swtpm-localca",
    "names": "/etc/hosts",
}
GUESTS = "guests"
WATCHED = {signal.SIGCHLD, signal.SIGUSR1}


def enter(at: Path, record: LabRecord) -> None:
    """Mount the node's folders over the machine's, in this mount namespace only."""
    if record.within:
        socket.sethostname(record.name)
        hide_the_others(at, Path(record.within), record.shared)
    for name, place in BOUND.items():
        if (at / name).exists() and Path(place).exists():
            run("mount", "--bind", at / name, place)
    if record.within:
        run("mount", "-t", "sysfs", "none", "/sys")  # with the network cards of its own
    if Path("/sys/fs/cgroup").is_dir():
        run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup")  # without cgroups libvirt leaves them alone
    run("ip", "link", "set", "lo", "up")


def hide_the_others(at: Path, lab: Path, shared: Sequence[str]) -> None:
    """Hide the lab's folder, except this node's own part, the shared storages and its guests' consoles.

    The consoles lie at one path on every host, as a VM that moves needs it, in another folder on each.
    """
    aside, own = Path("/run"), [at, *(lab / name for name in shared)]
    run("mount", "-t", "tmpfs", "none", aside)
    for number, folder in enumerate(own):
        (aside / str(number)).mkdir()
        run("mount", "--rbind", folder, aside / str(number))
    run("mount", "-t", "tmpfs", "-o", "mode=755", "none", lab)
    for number, folder in enumerate(own):
        folder.mkdir()
        run("mount", "--move", aside / str(number), folder)
    run("umount", aside)
    if (at / GUESTS).exists():
        (lab / GUESTS).mkdir()
        run("mount", "--bind", at / GUESTS, lab / GUESTS)
    run("mount", "-o", "remount,ro", lab)


def start_libvirtd(at: Path, *, listen: bool) -> int:
    """Start libvirtd with nothing of this process but its namespaces. Return its process id."""
    libvirtd = program("libvirtd")
    log = os.open(at / "log" / "libvirtd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return os.posix_spawn(
            libvirtd,
            [
                libvirtd,
                "-p",
                "/run/libvirtd.pid",
                "-f",
                "/etc/libvirt/libvirtd.conf",
                *(["--listen"] if listen else []),
            ],
            {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": "/root"},
            file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
            setsigmask=[],
        )
    finally:
        os.close(log)


def reap() -> set[int]:
    """Reap all children that have ended. Return their process ids."""
    ended: set[int] = set()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def keep(at: Path, record: LabRecord) -> None:
    """Run libvirtd if this node is a host, and reap for ever."""
    is_host = (at / "etc/libvirtd.conf").exists()
    libvirtd: int | None = None
    asked = is_host
    while True:
        if libvirtd in reap():
            libvirtd = None
        if asked and libvirtd is None:
            libvirtd = start_libvirtd(at, listen=bool(record.within))
        asked = signal.sigwaitinfo(WATCHED).si_signo == signal.SIGUSR1 and is_host


def main() -> None:
    """Become the keeper of the node named on the command line."""
    at = Path(sys.argv[1])
    record = read_record(at)
    assert record is not None, f"{at} was made before its keeper"
    enter(at, record)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    (at / "furnished").touch()
    keep(at, record)


if __name__ == "__main__":
    main()
