"""The lab's processes: found by the folders that they see, killed by their own ids.

A process is the lab's when its /etc/libvirt is the lab's folder: libvirtd, each QEMU and swtpm; or when it is the
lab's keeper, guard or vmferry worker by its command line. That needs no record that a crash could lose, and cannot
hit a stranger that got an old process's id.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

HELPERS = (b"vmferry.lab.hosts.subreaper", b"vmferry.lab.hosts.watchdog")
WORKER = b"vmferry.server.worker"
"""Its state folder tells whose it is: a lab's own lies within the lab."""


def lab_processes(at: Path) -> list[int]:
    """Return the ids of all processes that run in the lab at `at`; empty when there is no such lab."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and in_lab(int(p.name), at)]


def in_lab(pid: int, at: Path) -> bool:
    """Is this a running process of the lab? A process that is gone, or a zombie, is not."""
    with suppress(OSError):
        return _serves(pid, at) or Path(f"/proc/{pid}/root/etc/libvirt").samefile(at / "etc")
    return False


def _serves(pid: int, at: Path) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if WORKER in words:
        return any(word == b"--state" and place.startswith(bytes(at) + b"/") for word, place in pairwise(words))
    return any(word in HELPERS and place == bytes(at) for word, place in pairwise(words))


def kill_in_lab(pid: int, at: Path, deadline_s: float = 10) -> None:
    """SIGKILL a process of the lab and wait until it has ended; nothing happens if it is not the lab's."""
    signal_in_lab(pid, at, signal.SIGKILL, deadline_s)


def signal_in_lab(pid: int, at: Path, number: signal.Signals, deadline_s: float = 0) -> bool:
    """Signal a process of the lab and wait up to the deadline. Return True if it is gone, or was not the lab's."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not in_lab(pid, at):
            return True
        signal.pidfd_send_signal(pidfd, number)
        return bool(select.select([pidfd], [], [], deadline_s)[0])
    except ProcessLookupError:
        return True  # it ended between the look and the signal
    finally:
        os.close(pidfd)


def kill_all(at: Path, first: int | None = None, last: int | None = None) -> None:
    """Kill every process of the lab: `first` so that it starts no more, `last` so that it reaps the others."""
    if first:
        kill_in_lab(first, at)
    while others := set(lab_processes(at)) - {last, os.getpid()}:
        for pid in others:
            kill_in_lab(pid, at)
    if last:
        kill_in_lab(last, at)


def pid_in(file: Path) -> int | None:
    """Return the process id in a pid file; None when there is none."""
    with suppress(OSError, ValueError):
        return int(file.read_text().split()[0])
    return None
