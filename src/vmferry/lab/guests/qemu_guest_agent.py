"""QEMU's own guest agent, as Debian ships it, for the initrd of guests that have one."""

from __future__ import annotations

import re
from pathlib import Path

from vmferry.lab.programs import program, run

LIBRARY = re.compile(r"(/\S+) \(0x")


def agent_files() -> dict[str, Path]:
    """Return qemu-ga, its libraries, and hwclock, which sets clocks for it, by place in the guest. Raises LabNeeds."""
    agent = Path(program("qemu-ga"))
    libraries = map(Path, LIBRARY.findall(run("ldd", agent)))
    own = {"sbin/qemu-ga": agent, "sbin/hwclock": Path(program("busybox"))}
    return own | {str(library).lstrip("/"): library for library in libraries}
