"""QEMU's own guest agent, as Debian ships it, for the initrd of guests that have one."""

from __future__ import annotations

import re
from pathlib import Path

from vmferry.lab.programs import program, run

LIBRARY = re.compile(r"(/\S+) \(0x")


def agent_files() -> dict[str, Path]:
    """qemu-ga and the libraries that it is linked to, by their place in the guest; LabNeeds when it is missing."""
    agent = Path(program("qemu-ga"))
    libraries = map(Path, LIBRARY.findall(run("ldd", agent)))
    return {"sbin/qemu-ga": agent} | {str(library).lstrip("/"): library for library in libraries}
