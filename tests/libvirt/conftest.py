"""A real libvirt host and real guests for the tests of this folder: one lab for each pytest process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from vmferry.errors import LabNeeds
from vmferry.lab import GuestSpec, LabGuest, LabHost
from vmferry.lab.boot import prepare_boot
from vmferry.lab.ferry import Ferry

MakeGuest = Callable[[GuestSpec], LabGuest]


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
        made.append(lab.guest(unique))
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
def ferry(lab: LabHost, tmp_path: Path) -> Iterator[Ferry]:
    """vmferry's own command against the lab, with a state folder of its own within the lab, which ends its worker."""
    with Ferry(lab.at / f"state-{tmp_path.name}", lab.uri) as command:
        yield command
