"""The work of `vmferry lab ...`; the command line prints the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import libvirt

from vmferry.errors import LabRunning, NoLab, NoSuchVm
from vmferry.lab.guests.disks import DiskSpec
from vmferry.lab.guests.domain import GuestSpec
from vmferry.lab.guests.guest import LabGuest
from vmferry.lab.hosts.host import DEFAULT_PLACE, LabHost
from vmferry.lab.hosts.lab import Lab, lab_at
from vmferry.lab.hosts.links import Cut, LinkState
from vmferry.lab.hosts.storage import DEFAULT_STORAGES, StorageSpec

DEMO = GuestSpec("demo", disks=(DiskSpec("vda", internal_snapshot="before"), DiskSpec("vdb", format="raw")))


@dataclass(frozen=True)
class LabVm:
    """One VM of a lab; `acknowledged` counts the writes that its guest says are durable."""

    name: str
    running: bool
    disks: tuple[str, ...]
    acknowledged: int


@dataclass(frozen=True)
class LabStatus:
    """A running lab of one host; `uri` is what libvirt clients connect to, None while its libvirtd is down."""

    at: Path
    uri: str | None
    storages: tuple[Path, ...]
    vms: tuple[LabVm, ...]


@dataclass(frozen=True)
class HostStatus:
    """One host of a lab of several; `storages` leaves out those that are shared."""

    name: str
    address: str
    uri: str | None
    storages: tuple[Path, ...]
    vms: tuple[LabVm, ...]
    link: LinkState


@dataclass(frozen=True)
class HostsStatus:
    """A running lab of several hosts, with their shared storages and the link of the manager's node."""

    at: Path
    hosts: tuple[HostStatus, ...]
    shared: tuple[Path, ...]
    manager_link: LinkState


def up(
    at: Path = DEFAULT_PLACE,
    storages: Sequence[StorageSpec] = DEFAULT_STORAGES,
    guest: GuestSpec | None = DEMO,
    *,
    owner_pid: int | None = None,
) -> LabStatus:
    """Start a lab of one host with one guest that writes; it ends by `down` or with the process `owner_pid`.

    Leaves nothing when it fails. Raises LabNeeds, LabRunning, LabPlaceUnfit, LabProgramFailed, LabLate.
    """
    _clear(at)
    host = LabHost(at).up(storages, owner_pid=owner_pid)
    try:
        if guest:
            LabGuest.make(host, guest)
        return _alone(host)
    except BaseException:
        host.down()
        raise


def up_several(
    hosts: int, at: Path = DEFAULT_PLACE, guest: GuestSpec | None = DEMO, *, owner_pid: int | None = None
) -> HostsStatus:
    """Start a lab of several hosts with a guest on the first; it ends by `down` or with the process `owner_pid`.

    Leaves nothing when it fails. Raises LabNeeds, LabRunning, LabPlaceUnfit, LabProgramFailed, LabLate.
    """
    _clear(at)
    lab = Lab(at).up(hosts, owner_pid=owner_pid)
    try:
        if guest:
            LabGuest.make(lab.hosts[0], guest)
        return _several(lab)
    except BaseException:
        lab.down()
        raise


def down(at: Path = DEFAULT_PLACE) -> None:
    """End the lab at `at`, whichever process started it and however that ended. Raises NoLab if there is none."""
    lab = lab_at(at)
    if lab is None:
        raise NoLab(at=at)
    lab.down()


def status(at: Path = DEFAULT_PLACE) -> LabStatus | HostsStatus:
    """Return what the lab at `at` holds now. Raises NoLab if none runs there."""
    lab = lab_at(at)
    if lab is None or not lab.running:
        raise NoLab(at=at)
    return _several(lab) if isinstance(lab, Lab) else _alone(lab)


def several(at: Path = DEFAULT_PLACE) -> Lab:
    """Return the lab of several hosts that runs at `at`. Raises NoLab."""
    lab = Lab(at)
    if not lab.running:
        raise NoLab(at=at)
    return lab


def link(
    name: str,
    at: Path = DEFAULT_PLACE,
    *,
    rate: str | None = None,
    cut: Cut | None = None,
    heal: bool = False,
) -> HostsStatus:
    """Shape (`none`: no limit), cut or heal the link of a host or of the manager. Return the lab's status.

    Raises NoLab, NoSuchLabHost, LabLinkUnfit.
    """
    lab = several(at)
    cable = lab.link(name)
    if rate is not None:
        cable.shape(None if rate == "none" else rate)
    if heal:
        cable.heal()
    if cut is not None:
        cable.cut(cut)
    return _several(lab)


def _clear(at: Path) -> None:
    """Remove a lab whose processes have died. Raises LabRunning if one lives."""
    lab = lab_at(at)
    if lab is not None and lab.running:
        raise LabRunning(at=at)
    if lab is not None:
        lab.down()


def _alone(host: LabHost) -> LabStatus:
    uri, vms = _libvirt_of(host)
    return LabStatus(host.at, uri, _own_storages(host), vms)


def _several(lab: Lab) -> HostsStatus:
    hosts = []
    for host in lab.hosts:
        uri, vms = _libvirt_of(host)
        hosts.append(HostStatus(host.name, host.address, uri, _own_storages(host), vms, lab.link(host.name).state))
    shared = tuple(map(lab.shared, lab.record.shared))
    return HostsStatus(lab.at, tuple(hosts), shared, lab.link(lab.manager.at.name).state)


def _own_storages(host: LabHost) -> tuple[Path, ...]:
    return tuple(host.storage(name) for name in host.record.storages)


def _libvirt_of(host: LabHost) -> tuple[str | None, tuple[LabVm, ...]]:
    """Return the URI of a host's libvirtd and its VMs; None and no VMs while libvirtd is down."""
    if host.libvirtd_pid is None:
        return None, ()
    connection = host.connect()
    try:
        vms = [_vm(host, domain) for domain in connection.listAllDomains()]
    finally:
        connection.close()
    return host.uri, tuple(sorted(vms, key=lambda vm: vm.name))


def _vm(host: LabHost, domain: libvirt.virDomain) -> LabVm:
    name = domain.name()
    try:
        guest = LabGuest.find(host, name)
    except NoSuchVm:  # somebody defined one of their own
        return LabVm(name, bool(domain.isActive()), (), 0)
    return LabVm(name, bool(domain.isActive()), tuple(map(str, guest.images().values())), len(guest.acks()))
