"""What preflight says of devices, LUNs and exports, before anything is written to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmferry import preflight
from vmferry.hosts.asking import ask_host
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.hosts.simulator.world import File, add_machine
from vmferry.model import Disk, Image, MoveRequest, Power, Severity, Url, Vm, Volume, volume_bytes
from vmferry.preflight.moves import Wanted, disk_move
from vmferry.preflight.volumes import of_volumes

GIB = 1 << 30
FILE = Image(Path("/san1/a.img"), "raw", GIB, 1 << 20)
LUN = replace(FILE, path=Url("iscsi://san/iqn.x:y/1"), volume=True)
TO = Path("/dev/sdx")
VM = Vm("web", "uuid", Power.RUNNING, persistent=True, memory_bytes=GIB, disks=())
HOST = SimulatedHost(InMemory(World()), None)


def wanted(image: Image = FILE, **given: object) -> Wanted:
    words = {"to": TO, "volume": Volume(TO, 2 * GIB)} | given
    return Wanted(Disk("vda", (image,)), **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("move", "says"),
    [
        (wanted(volume=Volume(TO, trouble="a mount has it open")), "a mount has it open"),
        (wanted(volume=Volume(TO, 2 * GIB, holds="there is data in it")), "not empty"),
        (wanted(volume=Volume(TO, GIB - 1)), "needs"),
        (wanted(volume=Volume(TO, GIB), format="qcow2"), "needs"),
        (wanted(LUN), "overlay needs a folder"),
        (wanted(replace(FILE, format="qcow2", internal_snapshots=2)), "internal snapshots"),
        (wanted(replace(LUN, path=Url("nfs://filer/export/a")), overlays=Path("/o")), "has no user and group"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_forbids_a_volume_is_a_blocker_with_a_cure(move: Wanted, says: str) -> None:
    found = [f for f in of_volumes(HOST, VM, [move], ask_host, overwrite=False) if f.severity is Severity.BLOCKER]
    assert [says in f.what and bool(f.cure) for f in found] == [True]


def test_a_chain_cannot_go_to_a_volume() -> None:
    move = replace(wanted(), disk=Disk("vda", (FILE, FILE)))
    assert any("chain of 2" in f.what for f in of_volumes(HOST, VM, [move], ask_host, overwrite=False))


def test_two_disks_never_share_a_volume() -> None:
    assert any("two disks" in f.what for f in of_volumes(HOST, VM, [wanted(), wanted()], ask_host, overwrite=False))


def test_a_volume_that_is_full_of_something_is_taken_when_that_is_said() -> None:
    full = wanted(volume=Volume(TO, 2 * GIB, holds="there is data in it"))
    assert of_volumes(HOST, VM, [full], ask_host, overwrite=True) == []


def test_a_volume_of_just_the_right_size_is_enough_and_a_larger_one_is_used_in_part() -> None:
    assert volume_bytes(GIB, "raw") == GIB
    assert Volume(TO, GIB).lacks(GIB, "qcow2") == volume_bytes(GIB, "qcow2")
    assert Volume(TO, GIB).lacks(GIB, "raw") == Volume(TO, 0, resizes=True).lacks(GIB, "raw") == 0
    exact = disk_move(VM, wanted(volume=Volume(TO, GIB))).to
    larger = disk_move(VM, wanted()).to
    assert (exact.slice_bytes, larger.slice_bytes) == (None, GIB)


def test_a_file_on_nfs_takes_the_disks_size() -> None:
    for size in (0, 2 * GIB):
        move = wanted(volume=Volume(TO, size, resizes=True))
        assert of_volumes(HOST, VM, [move], ask_host, overwrite=False) == []
        assert disk_move(VM, move).to.slice_bytes is None


def test_one_file_on_nfs_is_not_two_because_two_ask_for_it() -> None:
    asked = [Url(f"nfs://filer/export/a?uid={uid}&gid=0") for uid in (0, 1)]
    both = [wanted(to=where, volume=Volume(where, GIB)) for where in asked]
    assert any("two disks" in f.what for f in of_volumes(HOST, VM, both, ask_host, overwrite=False))


def test_overlays_lie_where_there_is_a_folder() -> None:
    to_volume = disk_move(VM, wanted())
    assert (to_volume.overlays, to_volume.overlay_copies.parent) == (Path("/san1/a.img"), Path("/san1"))
    to_folder = disk_move(VM, wanted(LUN, to=Path("/san2"), volume=None))
    assert (to_folder.overlays.parent, to_folder.overlay_copies) == (Path("/san2"), Path("/san2/web-vda.raw"))
    both = disk_move(VM, wanted(LUN, overlays=Path("/tmp/o")))
    assert {both.overlays.parent, both.overlay_copies.parent} == {Path("/tmp/o")}
    assert both.overlays != both.overlay_copies


def test_a_volume_that_another_vm_uses_is_refused() -> None:
    world = World(volumes={TO}, files={TO: File()})
    add_machine(world, "web", "uuid-1", {"vda": ((Path("/san1/a.img"), "raw"),)})
    add_machine(world, "db", "uuid-2", {"vda": ((TO, "raw"),)})
    request = MoveRequest("web", "memory", disks={"vda": TO})
    host = SimulatedHost(InMemory(world), None)
    plan = preflight.plan(request, host, host, {})
    assert any("is needed by VM db" in f.what for f in plan.blockers)
