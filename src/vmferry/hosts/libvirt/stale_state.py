"""VMs that libvirtd has lost track of, since it was killed in a bad moment. Seen of 9.0.

A VM may count as starting for good, though it has no QEMU. libvirt notes that it starts a VM before there is a process,
and on its return passes over a note without a process id (qemuProcessReconnectHelper): the VM stays "paused, starting
up" with its lock held. No public call ends that, and a restart reads the same note again.

A VM may count as off, though its QEMU runs. At the end of a merge libvirt notes a mirror whose kind is empty, and on
its return cannot read that note.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

import libvirt

from vmferry.errors import VmHalfStarted, VmHeld, VmRunningUnseen
from vmferry.hosts.libvirt.qemu_process import OF_LIBVIRT, QemuProcess

_STARTING = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]
_OFF = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
_NO_PROCESS = re.compile(r"<domstatus [^>]*pid='0'")
_SETTLED_S = 5
"""Seconds: the process of a start follows libvirtd's note within milliseconds, but for a hook of the host's own.

libvirtd then writes the note anew."""


def check(host: str, domain: libvirt.virDomain, notes: Path = OF_LIBVIRT) -> None:
    """Raise if the VM is not in the state that libvirt reports.

    Raises VmRunningUnseen for one that runs and counts as off; VmHalfStarted for one that is off and counts as
    starting, VmHeld while that start may yet come to something.
    """
    state = domain.state()
    if state != _STARTING and state[0] not in _OFF:
        return
    name = domain.name()
    pid = _pid_of(QemuProcess(name, domain.UUIDString(), notes))
    if state != _STARTING:
        if pid is not None:
            raise VmRunningUnseen(host=host, vm=name, pid=pid)
    elif pid is None:
        _end_start(host, name, notes / f"{name}.xml")


def _pid_of(qemu: QemuProcess) -> int | None:
    """Return the id of a VM's QEMU while it runs, None otherwise; it is watched no longer."""
    lives = qemu.ends_within(0) is False
    qemu.close()
    return qemu.pid if lives else None


def _end_start(host: str, name: str, note: Path) -> None:
    """Take libvirtd's note of a start without a process away, so that a restart ends it; a person restarts libvirtd.

    Raises VmHalfStarted, and VmHeld while the start may yet come to something.
    """
    with suppress(FileNotFoundError):  # taken away before
        if not _NO_PROCESS.search(note.read_text(errors="replace")):
            return
        if time.time() - note.stat().st_mtime < _SETTLED_S:
            raise VmHeld(host=host, action="tell of it", reason="libvirt is starting it")
        note.unlink()
    raise VmHalfStarted(host=host, vm=name)
