"""The lab's keeper: the process inside the lab's namespaces above libvirtd and all that libvirtd starts.

It is a child subreaper and reaps at once: libvirt waits until a QEMU that it stopped is out of the process table,
and where PID 1 reaps late (seen: 2 s) each save and destroy, and the guest's pause, would look that much longer.

Run as `unshare --mount --net ... python -m vmferry.lab.keeper AT`. SIGUSR1 starts libvirtd if none runs; the
keeper ends only by SIGKILL, when the lab is taken down.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

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
}
WATCHED = {signal.SIGCHLD, signal.SIGUSR1}


def enter(at: Path) -> None:
    """Put the lab's folders in the place of the machine's, in this mount namespace only."""
    for name, place in BOUND.items():
        if Path(place).is_dir():
            run("mount", "--bind", at / name, place)
    if Path("/sys/fs/cgroup").is_dir():
        run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup")  # without cgroups libvirt leaves them alone
    run("ip", "link", "set", "lo", "up")


def start_libvirtd(at: Path) -> int:
    """Start libvirtd with nothing of this process but its namespaces; gives its process id."""
    libvirtd = program("libvirtd")
    log = os.open(at / "log" / "libvirtd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return os.posix_spawn(
            libvirtd,
            [libvirtd, "-p", "/run/libvirtd.pid", "-f", "/etc/libvirt/libvirtd.conf"],
            {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": "/root"},
            file_actions=[(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)],
            setsigmask=[],
        )
    finally:
        os.close(log)


def reap() -> set[int]:
    """Take every ended child out of the process table; gives their ids."""
    ended: set[int] = set()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def keep(at: Path) -> None:
    """Run libvirtd, reap for ever."""
    libvirtd: int | None = start_libvirtd(at)
    while True:
        asked = signal.sigwaitinfo(WATCHED).si_signo == signal.SIGUSR1
        if libvirtd in reap():
            libvirtd = None
        if asked and libvirtd is None:
            libvirtd = start_libvirtd(at)


def main() -> None:
    """Become the keeper of the lab named on the command line."""
    at = Path(sys.argv[1])
    enter(at)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    keep(at)


if __name__ == "__main__":
    main()
