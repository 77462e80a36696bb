"""A VM's QEMU as a process of this machine: its end is seen at once, where libvirt looks for it every 0.2 s."""

from __future__ import annotations

import json
import os
import select
from contextlib import suppress
from pathlib import Path

OF_LIBVIRT = Path("/run/libvirt/qemu")
"""Where the system's libvirt notes its QEMU processes; a session's does elsewhere, and is waited for instead."""


class QemuProcess:
    """The process that runs a VM now, if it can be known: by libvirt's file, and the UUID in its command line."""

    def __init__(self, name: str, uuid: str, pids: Path = OF_LIBVIRT) -> None:
        self._fd: int | None = None
        self.pid = 0
        with suppress(OSError, ValueError):
            self.pid = int((pids / f"{name}.pid").read_text())
            self._fd = _opened(self.pid, uuid)

    def close(self) -> None:
        """Stop watching the process."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def ends_within(self, seconds: float) -> bool | None:
        """Wait at most so long for the process to end; return whether it has. None, at once, if it is not known."""
        if self._fd is None:
            return None
        look = select.poll()
        look.register(self._fd, select.POLLIN)
        return bool(look.poll(seconds * 1000))


def started_on(image: Path) -> bool:
    """Was a QEMU of this machine that runs now started on the image? Its command line names it then, in JSON."""
    named = json.dumps(str(image)).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if named in (process / "cmdline").read_bytes():
                return True
    return False


def run_of(uuid: str) -> str:
    """Return number and start time of the processes that run the VM on this machine, as proc(5) has them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):  # it has just ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"-uuid" in words and words[words.index(b"-uuid") + 1] == uuid.encode():
                found.append(f"{process.name}:{(process / 'stat').read_text().rpartition(')')[2].split()[19]}")
    return " ".join(sorted(found))


def _opened(pid: int, uuid: str) -> int | None:
    """Return a pidfd of a VM's QEMU; None where the number is another process's by now. Raises OSError."""
    fd = os.pidfd_open(pid)
    sure = False
    try:
        sure = uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        if not sure:
            os.close(fd)
    return fd if sure else None
