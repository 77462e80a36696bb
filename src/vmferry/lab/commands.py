"""What `vmferry lab up`, `down` and `status` do; the command line prints what they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from vmferry.errors import NoLab, NoSuchVm
from vmferry.lab.disks import DiskSpec
from vmferry.lab.domain import GuestSpec
from vmferry.lab.host import DEFAULT_PLACE, LabHost
from vmferry.lab.storage import DEFAULT_STORAGES, StorageSpec

DEMO = GuestSpec("demo", disks=(DiskSpec("vda", internal_snapshot="before"), DiskSpec("vdb", format="raw")))


@dataclass(frozen=True)
class LabVm:
    """One VM of the lab; `acknowledged` counts the writes its guest says are durable."""

    name: str
    running: bool
    disks: tuple[str, ...]
    acknowledged: int


@dataclass(frozen=True)
class LabStatus:
    """A running lab; `uri` is what libvirt clients connect to, None while its libvirtd is down."""

    at: Path
    uri: str | None
    storages: tuple[Path, ...]
    vms: tuple[LabVm, ...]


def up(
    at: Path = DEFAULT_PLACE,
    storages: Sequence[StorageSpec] = DEFAULT_STORAGES,
    guest: GuestSpec | None = DEMO,
    *,
    owner_pid: int | None = None,
) -> LabStatus:
    """Start a lab with one guest that writes; it ends by `down` or with `owner_pid`. Leaves nothing when it fails.

    Raises LabNeeds, LabRunning, LabPlaceUnfit, LabProgramFailed, LabLate.
    """
    host = LabHost(at).up(storages, owner_pid=owner_pid)
    try:
        if guest:
            host.guest(guest)
        return status(at)
    except BaseException:
        host.down()
        raise


def down(at: Path = DEFAULT_PLACE) -> None:
    """End the lab at `at`, whichever process started it and however that ended; NoLab when there is none."""
    host = LabHost(at)
    if not host.exists:
        raise NoLab(at=at)
    host.down()


def status(at: Path = DEFAULT_PLACE) -> LabStatus:
    """What the lab at `at` holds now; NoLab when none runs there."""
    host = LabHost(at)
    if not host.running:
        raise NoLab(at=at)
    storages = tuple(host.storage(name) for name in host.record.storages)
    if host.libvirtd_pid is None:
        return LabStatus(host.at, None, storages, ())
    connection = host.connect()
    try:
        vms = tuple(_vm(host, domain) for domain in connection.listAllDomains())
    finally:
        connection.close()
    return LabStatus(host.at, host.uri, storages, tuple(sorted(vms, key=lambda vm: vm.name)))


def _vm(host: LabHost, domain: libvirt.virDomain) -> LabVm:
    name = domain.name()
    try:
        guest = host.find_guest(name)
    except NoSuchVm:  # somebody defined one of their own
        return LabVm(name, bool(domain.isActive()), (), 0)
    return LabVm(name, bool(domain.isActive()), tuple(map(str, guest.images().values())), len(guest.acks()))
