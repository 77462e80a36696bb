"""libvirt's live migration, to storage where all but what the last overlays hold is already."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import libvirt

from vmferry.errors import HostRefused, VmferryError
from vmferry.hosts.libvirt import definition, domain_xml
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.hosts.libvirt.qemu_process import QemuProcess
from vmferry.model import Changes
from vmferry.transfer import Watch

_LIVE_XML = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_NON_SHARED_INC
    | libvirt.VIR_MIGRATE_PAUSED
)
"""PAUSED: a VM that was not resumed there has never run there, so an end in doubt can be decided for the source.

With a disk that stays UNSAFE too: libvirt knows a shared storage by its file system's kind only, preflight by its
marker."""


STOPS_MS = 100
"""Milliseconds: QEMU stops the guest when sending the rest takes no longer (its own: 300); so long the guest stands."""
PATIENT_ROUNDS = 8
"""Passes over a guest's memory; one that takes more changes its memory too fast for so short a stop."""
_END_POLL_S, _STATS_S = 0.05, 1.0
_OVER = frozenset({libvirt.VIR_DOMAIN_JOB_FAILED, libvirt.VIR_DOMAIN_JOB_CANCELLED})


class Incoming(NamedTuple):
    """How a libvirtd reaches another one, and QEMU the other QEMU: URIs as libvirt takes them."""

    connect: str
    memory: str
    disks: str


class MigrationTransport(Protocol):
    """Carries libvirt's and QEMU's own streams from host to host."""

    def receive(self, job: str) -> str:
        """Open this end for one migration of a job. Returns an opaque endpoint, which the other end passes to `to`."""

    def end(self, job: str) -> None:
        """Close this end, and cut all streams of a job."""

    def to(self, job: str, endpoint: str) -> AbstractContextManager[tuple[str, str, str]]:
        """Yield the URIs (see Incoming) that lead to the host which gave the endpoint, while the context is open."""

    def expose(self, job: str, name: str) -> tuple[Path, str, str]:
        """Return a unix socket to listen on, and where other hosts reach it: address and ticket.

        These hold until `end`, or until the next call with this name.
        """

    def connect(self, address: str, ticket: str) -> AbstractContextManager[Path]:
        """Yield a unix socket that leads to where another host's ticket does, while the context is open."""


def migrate(link: LibvirtConnection, uuid: str, incoming: Incoming, changes: Changes, watch: Watch) -> None:
    """Migrate a running VM; cancelled, or cut off before the end, it runs on here.

    Returns as soon as its QEMU has ended here, also by a crash: whether the VM arrived, the other host knows.
    Raises HostRefused, HostUnreachable and what watch.check() raises.
    """
    link.forget_stop(uuid)
    failed: list[VmferryError] = []
    downtime, sleeper = _Downtime(link, uuid), _Sleeper(link, uuid)

    def carry() -> None:
        try:
            link.call_long(
                "migrate it", lambda conn: _begin(conn.lookupByUUIDString(uuid), incoming, changes, downtime)
            )
        except VmferryError as error:
            failed.append(error)

    carrying = threading.Thread(target=carry, name=f"migrate {uuid}")
    name = str(link.call("look at it", lambda c: c.lookupByUUIDString(uuid).name()))
    qemu = QemuProcess(name, uuid)
    carrying.start()
    looked = time.monotonic()
    try:
        while carrying.is_alive():
            ended = qemu.ends_within(_END_POLL_S)
            if ended:
                downtime.forget()
                return
            if ended is None:
                carrying.join(_END_POLL_S)
            watch.check()
            if time.monotonic() - looked > _STATS_S:
                looked, seen = time.monotonic(), _progress_of(link, uuid)
                downtime.heed(seen)
                sleeper.heed(seen)
    except VmferryError:
        while carrying.is_alive():
            sleeper.wake()
            carrying.join(_STATS_S)
        raise
    finally:
        qemu.close()
        downtime.restore()
    if failed:
        raise failed[0]


def _begin(domain: libvirt.virDomain, incoming: Incoming, changes: Changes, downtime: _Downtime) -> None:
    """Make libvirt's migration call, which takes as long as the migration."""
    root = domain_xml.parse(domain.XMLDesc(_LIVE_XML))
    definition.apply(root, changes)
    copied = [domain_xml.target_of(disk) for disk in domain_xml.disks(root) if _takes_writes(disk)]
    copied = [target for target in copied if target in changes.disks]
    stays = {domain_xml.target_of(disk) for disk in domain_xml.disks(root)} - changes.disks.keys()
    flags = _FLAGS | (libvirt.VIR_MIGRATE_UNSAFE if stays else 0)
    downtime.lower(domain)
    domain.migrateToURI3(incoming.connect, _parameters(incoming, copied, domain_xml.text(root)), flags)


class _Downtime:
    """Lowers the downtime within which QEMU stops the guest for the rest, as long as its memory converges.

    libvirt would keep the lower value for what comes after, so it is put back.
    """

    def __init__(self, link: LibvirtConnection, uuid: str) -> None:
        self._link = link
        self._uuid = uuid
        self._before: int | None = None

    def lower(self, domain: libvirt.virDomain) -> None:
        before = int(domain.migrateGetMaxDowntime())
        domain.migrateSetMaxDowntime(min(before, STOPS_MS))
        self._before = before

    def heed(self, told: Mapping[str, Any]) -> None:
        """Put the downtime back for a guest whose migration would never come to an end with the lower one."""
        if int(told.get("memory_iteration", 0)) > PATIENT_ROUNDS:
            self.restore()

    def forget(self) -> None:
        """Put nothing back any more: the QEMU whose downtime was lowered is gone."""
        self._before = None

    def restore(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            with contextlib.suppress(HostRefused):  # it has left already, or is about to
                self._link.call(
                    "put its downtime back", lambda c: c.lookupByUUIDString(self._uuid).migrateSetMaxDowntime(before)
                )


class _Sleeper:
    """Wakes libvirt's migration call, which may sleep for ever once the migration has failed or was stopped.

    To stop the migration again wakes the call up.

    libvirt 9.0 attends to the mirrors one after another (qemuMigrationSrcNBDCopyCancelled), and misses the end of one
    that ends while it asks QEMU about another: seen in 7 of 25 cancelled migrations with two disks.
    """

    def __init__(self, link: LibvirtConnection, uuid: str) -> None:
        self._link = link
        self._uuid = uuid
        self._over = False

    def heed(self, told: Mapping[str, Any]) -> None:
        """Wake the call if the migration was over already at the look before this one."""
        before, self._over = self._over, told.get("type") in _OVER
        if before and self._over:
            self.wake()

    def wake(self) -> None:
        """Stop the migration, even if again; it may have ended meanwhile: undo finds what became of it."""
        with contextlib.suppress(VmferryError):
            self._link.call("stop migrating", lambda c: c.lookupByUUIDString(self._uuid).abortJob())


def _progress_of(link: LibvirtConnection, uuid: str) -> Mapping[str, Any]:
    """Return libvirt's statistics of the VM's job; none where the VM has left already, or is about to."""
    with contextlib.suppress(HostRefused):
        return link.call("look at its migration", lambda c: c.lookupByUUIDString(uuid).jobStats())
    return {}


def _takes_writes(disk: domain_xml.Element) -> bool:
    """Is it a disk to mirror? A disc in a drive has come whole before, and QEMU mirrors nothing read-only."""
    return disk.get("device", "disk") == "disk" and disk.find("readonly") is None


def _parameters(incoming: Incoming, copied: list[str], xml: str) -> dict[str, object]:
    """Return libvirt's parameters. Raises HostRefused without a disk: an empty list means all of them to libvirt."""
    if not copied:
        raise HostRefused(host="libvirt", action="migrate it", reason="it has no disk that moves")
    return {
        libvirt.VIR_MIGRATE_PARAM_URI: incoming.memory,
        libvirt.VIR_MIGRATE_PARAM_DISKS_URI: incoming.disks,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml,
        libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: copied,
    }
