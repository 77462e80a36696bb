"""What becomes of the discs in the drives of a VM that goes to another host."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.worlds import FAR, UUID

from vmferry import preflight
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.hosts.simulator.world import File, add_machine
from vmferry.model import Disk, Image, MoveRequest, Placed, Power, Severity, Url, Vm, Where
from vmferry.preflight.findings import Ends
from vmferry.preflight.removable_media import RemovableMedia, discs

ISO, THERE = Path("/library/a.iso"), Path("/vms/a.iso")


@pytest.fixture
def world() -> World:
    made = World()
    made.add_peer(FAR)
    made.files[ISO] = File({0: 1})
    return made


def told(world: World, iso: str, path: Where = ISO, *, volume: bool = False) -> RemovableMedia:
    drive = Disk("sda", (Image(path, "raw", 1 << 20, 1 << 20, volume=volume),), device="cdrom", readonly=True)
    empty = Disk("sdb", (), device="cdrom", source="none", readonly=True)
    vm = Vm("vm", "uuid", Power.RUNNING, persistent=True, memory_bytes=1, disks=(drive, empty))
    ground = InMemory(world)
    ends = Ends(SimulatedHost(ground, name="memory"), SimulatedHost(ground, name=FAR))
    return discs(ends, vm, MoveRequest("vm", "memory", Path("/vms"), to=FAR, iso=iso))


def blockers(found: RemovableMedia) -> list[str]:
    refused = [f for f in found.found if f.severity is Severity.BLOCKER]
    assert all(f.cure for f in refused)
    return [f.what for f in refused]


def test_a_disc_is_copied_beside_the_disks(world: World) -> None:
    found = told(world, "copy")
    assert found.copied == {"sda": Path("/vms")}
    assert found.media == {}
    assert blockers(found) == []


def test_a_disc_that_is_there_already_is_taken_if_it_is_the_same(world: World) -> None:
    world.at(FAR).files[THERE] = File({0: 1})
    assert told(world, "copy").media == {"sda": Placed(THERE, "raw")}
    world.at(FAR).files[THERE] = File({0: 2})
    assert told(world, "copy").copied == {"sda": Path("/vms")}  # and refused, as whatever exists there


def test_the_same_path_is_taken_for_the_same_content_only(world: World) -> None:
    assert blockers(told(world, "same")) == ["/library/a.iso in sda is not on far with the same content"]
    world.at(FAR).files[ISO] = File({0: 2})
    assert blockers(told(world, "same")) != []
    world.at(FAR).files[ISO] = File({0: 1})
    found = told(world, "same")
    assert (blockers(found), found.copied, found.media) == ([], {}, {})


def test_a_disc_is_ejected_wherever_it_lies(world: World) -> None:
    del world.files[ISO]
    assert told(world, "eject").media == {"sda": None}


def test_a_drive_of_the_host_itself_can_only_be_ejected(world: World) -> None:
    assert blockers(told(world, "copy", Path("/dev/sr0"), volume=True)) == ["sda is the drive /dev/sr0 of memory"]


def test_a_disc_over_the_network_stays(world: World) -> None:
    found = told(world, "copy", Url("nbd://images/a"), volume=True)
    assert (blockers(found), found.copied, found.media) == ([], {}, {})


def test_memory_is_never_saved_into_the_library_of_a_disc_that_comes_first(world: World) -> None:
    disks = {"hda": ((ISO, "raw"),), "hdb": ((Path("/fast/b.img"), "raw"),)}
    add_machine(world, "vm", UUID, disks).readonly = frozenset({"hda"})
    request = MoveRequest("vm", "memory", disks={"hda": Path("/vms"), "hdb": Path("/vms")}, via="quick", to=FAR)
    ground = InMemory(world)
    plan = preflight.plan(request, SimulatedHost(ground, name="memory"), SimulatedHost(ground, name=FAR), {})
    assert [(disk.target, disk.frozen) for disk in plan.disks] == [("hdb", True), ("hda", False)]
