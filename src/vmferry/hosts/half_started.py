"""A VM that counts as starting for good, though it has no QEMU: libvirtd was killed as it started it.

libvirt notes that it starts a VM before there is a process, and on its return passes over a note without a process id
(9.0: qemuProcessReconnectHelper): the VM stays "paused, starting up" with its lock held. No public call ends that, and a
restart reads the same note again.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

import libvirt

from vmferry.errors import VmHalfStarted, VmHeld
from vmferry.hosts.qemu_process import OF_LIBVIRT, QemuProcess

_STARTING = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]
_NO_PROCESS = re.compile(r"<domstatus [^>]*pid='0'")
_SETTLED_S = 5
"""Between the note and the process lie milliseconds, but for a hook of the host's own. libvirtd then writes it anew."""


def check(host: str, domain: libvirt.virDomain, notes: Path = OF_LIBVIRT) -> None:
    """Take libvirtd's note of such a start away, so that a restart ends it: who restarts libvirtd is not for us to say.

    Raises VmHalfStarted from then on; VmHeld while the start may yet come to something.
    """
    if domain.state() != _STARTING:
        return
    name, note = domain.name(), notes / f"{domain.name()}.xml"
    qemu = QemuProcess(name, domain.UUIDString(), notes)
    lives = qemu.ends_within(0) is False
    qemu.close()
    if lives:
        return
    with suppress(FileNotFoundError):  # taken away before
        if not _NO_PROCESS.search(note.read_text(errors="replace")):
            return
        if time.time() - note.stat().st_mtime < _SETTLED_S:
            raise VmHeld(host=host, action="tell of it", reason="libvirt is starting it")
        note.unlink()
    raise VmHalfStarted(host=host, vm=name)
