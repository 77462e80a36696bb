"""A real libvirt host and real guests for the tests of this folder: one lab for each pytest process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from tests.support.guests import MakeGuest, MakeGuestOn
from tests.support.volumes import LabVolumes

from vmferry.errors import LabNeeds
from vmferry.lab import GuestSpec, Lab, LabGuest, LabHost
from vmferry.lab.guests.boot import prepare_boot
from vmferry.lab.vmferry_command import VmferryCommand


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHost]:
    """A lab host with san1 (ext4) and san2 (xfs); its guard takes it down even if this process is killed."""
    try:
        prepare_boot()
        host = LabHost(tmp_path_factory.mktemp("lab")).up(owner_pid=os.getpid())
    except LabNeeds as error:
        pytest.skip(str(error))
    try:
        yield host
    finally:
        host.down()


@pytest.fixture
def make_guest(lab: LabHost) -> Iterator[MakeGuest]:
    """Makes guests that end with the test, wherever their disks are by then."""
    made: list[LabGuest] = []

    def make(spec: GuestSpec) -> LabGuest:
        unique = spec if not made else replace(spec, name=f"{spec.name} {len(made) + 1}")
        made.append(LabGuest.make(lab, unique))
        return made[-1]

    try:
        yield make
    finally:
        for guest in made:
            guest.remove()


@pytest.fixture
def connection(lab: LabHost) -> Iterator[libvirt.virConnect]:
    """A connection to the lab's libvirtd."""
    opened = lab.connect()
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def domain_of(connection: libvirt.virConnect) -> Callable[[LabGuest], libvirt.virDomain]:
    """libvirt's view of a guest."""
    return lambda guest: connection.lookupByName(guest.name)


@pytest.fixture
def lab_place(tmp_path: Path) -> Iterator[Path]:
    """A folder for a lab that the test starts itself; taken down whatever the test did."""
    place = tmp_path / "own"
    try:
        yield place
    finally:
        LabHost(place).down()


@pytest.fixture
def ferry(lab: LabHost, tmp_path: Path) -> Iterator[VmferryCommand]:
    """vmferry's own command against the lab, with a state folder of its own within the lab, which ends its worker."""
    with VmferryCommand(lab.at / f"state-{tmp_path.name}", lab.uri, priority="foreground") as command:
        yield command


@pytest.fixture
def volumes(lab: LabHost) -> Iterator[LabVolumes]:
    """Devices, LUNs, exports and files on NFS beside the lab's storages."""
    with LabVolumes(lab) as made:
        yield made


@pytest.fixture
def inner_ferry(lab: LabHost, volumes: LabVolumes, tmp_path: Path) -> Iterator[VmferryCommand]:
    """vmferry's command and worker where the LUNs can be reached."""
    with VmferryCommand(lab.at / f"state-{tmp_path.name}", lab.uri, volumes.inside, priority="foreground") as command:
        yield command


# -- several hosts


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Lab]]:
    """A lab with so many hosts, one for each pytest process and number; `two_hosts` is what a test wants."""
    started: dict[int, Lab] = {}

    def lab_of(hosts: int) -> Lab:
        if hosts not in started:
            started[hosts] = Lab(tmp_path_factory.mktemp("hosts")).up(hosts, owner_pid=os.getpid())
        return started[hosts]

    try:
        prepare_boot()
        yield lab_of
    except LabNeeds as error:
        pytest.skip(str(error))
    finally:
        for lab in started.values():
            lab.down()


@pytest.fixture
def two_hosts(labs: Callable[[int], Lab]) -> Iterator[Lab]:
    """host1 and host2, their links whole and their libvirtd up again after the test."""
    yield from _whole(labs(2))


@pytest.fixture
def three_hosts(labs: Callable[[int], Lab]) -> Iterator[Lab]:
    """host1 to host3, as two_hosts has them."""
    yield from _whole(labs(3))


def _whole(lab: Lab) -> Iterator[Lab]:
    try:
        yield lab
    finally:
        for name in (*lab.record.hosts, "manager"):
            lab.link(name).heal()
            lab.link(name).shape(None)
        for host in lab.hosts:
            host.start_libvirtd()


@pytest.fixture
def make_guest_on() -> Iterator[MakeGuestOn]:
    """Makes guests that end with the test, on whichever host they are by then. Ask for it after the hosts."""
    made: list[LabGuest] = []

    def make(host: LabHost, spec: GuestSpec) -> LabGuest:
        unique = spec if not made else replace(spec, name=f"{spec.name} {len(made) + 1}")
        made.append(LabGuest.make(host, unique))
        return made[-1]

    try:
        yield make
    finally:
        for guest in made:
            guest.remove()


@pytest.fixture
def manager(two_hosts: Lab, tmp_path: Path) -> Iterator[VmferryCommand]:
    """vmferry's own command in the manager's place: on the network of two_hosts, without any of their files."""
    node = two_hosts.manager
    with VmferryCommand(
        node.at / f"state-{tmp_path.name}", two_hosts.host("host1").tcp_uri, node.inside(), priority="foreground"
    ) as command:
        yield command
