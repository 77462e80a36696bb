"""A running guest and its disks go to another host with storage of its own; the guest is the judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.libvirt.conftest import MakeGuestOn
from tests.libvirt.fleets import ManagedLab, managed
from tests.libvirt.seen import TWO_DISKS, nothing_of_ours, of_snapshot, untouched

from vmferry.lab import DiskSpec, GuestSpec, Lab, LabGuest, LabHost

LEASE = DiskSpec("vdc", storage="shared", format="raw", size_mib=1, lease=True)
WRITER = GuestSpec("writer", disks=(*TWO_DISKS, LEASE), rate=100)


@pytest.fixture
def fleet(two_hosts: Lab, tmp_path: Path) -> Iterator[ManagedLab]:
    with managed(two_hosts, tmp_path.name) as managed_lab:
        yield managed_lab


def folder_on(host: LabHost, guest: LabGuest, storage: str = "san2") -> Path:
    folder = host.storage(storage) / guest.name
    folder.mkdir(exist_ok=True)
    return folder


def test_a_quick_relocation_carries_disks_snapshots_and_memory_and_loses_nothing(
    fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, WRITER)
    vda, vdb = guest.place.images["vda"], guest.place.images["vdb"]
    snapshot = of_snapshot(vda, "before", TWO_DISKS[0])
    quiet = untouched(vdb, "raw", TWO_DISKS[1])
    guest.wait_acks(50)
    folder = folder_on(two, guest)

    ended = fleet.migrate(guest, two, "--path", folder, "--via", "quick", "--max-pause", "30s")

    assert ended.code == 0, ended.out + ended.err
    assert guest.runs_on() == ["host2"]
    guest.moved_to(two)
    guest.wait_acks(50)
    guest.wait_edges(2)
    guest.stop_writing()
    verdict = guest.verdict()
    assert verdict.clean, verdict
    assert guest.errors() == []
    assert guest.images() == {"vda": str(folder / vda.name), "vdb": str(folder / vdb.name), "vdc": str(LEASE_AT(guest))}
    assert of_snapshot(folder / vda.name, "before", TWO_DISKS[0]) == snapshot
    assert untouched(folder / vdb.name, "raw", TWO_DISKS[1]) == quiet
    assert not vda.exists()
    assert not vdb.exists()
    nothing_of_ours(vda.parent, folder)
    assert guest.name not in one.run("virsh", "list", "--all", "--name")


def LEASE_AT(guest: LabGuest) -> Path:
    return guest.place.images["vdc"]
