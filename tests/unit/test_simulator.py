"""The toy host is honest: it notices each broken promise that the crash matrix relies on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.worlds import SOURCE, UUID, make_world

from vmferry.errors import DestinationExists, HostRefused, Superseded
from vmferry.hosts.simulator.driver import InFile, InMemory, SimulatedHost, World
from vmferry.hosts.simulator.world import File, add_machine
from vmferry.model import Changes, FencingToken, Placed, Power
from vmferry.transfer import Throttle, Transfer

MEMORY = SOURCE / "vmferry-abcd2345.memory"
BASE = SOURCE / "guest-a.img"
OVERLAYS = {"vda": SOURCE / "a.r0.qcow2", "vdb": SOURCE / "b.r0.qcow2"}


class Unwatched:
    throttle = Throttle()

    def check(self) -> None:
        pass

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        pass


def acting(world: World, epoch: int = 1) -> SimulatedHost:
    return SimulatedHost(InMemory(world), FencingToken("abcd2345", epoch))


def actives(world: World) -> dict[str, Placed]:
    return dict(world.machines[UUID].disks)


def test_a_running_guest_writes_at_every_call_and_reads_it_all_back() -> None:
    world = make_world()
    stamps = world.stamps
    acting(world).power(UUID)
    assert world.stamps > stamps
    world.check()
    assert world.violations == []


def test_a_lost_write_is_noticed() -> None:
    world = make_world()
    acting(world).power(UUID)
    world.files[BASE].blocks.clear()
    world.check()
    assert any("lost a write" in violation for violation in world.violations)


def test_a_change_of_a_frozen_base_is_noticed() -> None:
    world = make_world()
    acting(world).freeze(UUID, OVERLAYS, None)
    world.files[BASE].write(0, 1)
    world.check()
    assert any("frozen" in violation for violation in world.violations)


def test_a_file_in_use_that_is_removed_is_noticed() -> None:
    world = make_world()
    acting(world).remove(SOURCE / "guest-b-base.qcow2")
    assert any("taken away" in violation for violation in world.violations)


def test_a_saved_state_brings_the_guest_back_once() -> None:
    world = make_world()
    host = acting(world)
    host.save(UUID, MEMORY, Unwatched())
    assert host.saved(UUID, MEMORY)
    host.restore(UUID, MEMORY, Changes(actives(world)))
    assert host.power(UUID) is Power.PAUSED
    host.release(UUID, MEMORY, run=True)
    assert host.spent(MEMORY)
    assert world.violations == []
    world.kill_qemu(UUID)
    host.restore(UUID, MEMORY, Changes(actives(world)))
    assert any("though it was released" in violation for violation in world.violations)


def test_running_on_before_the_saved_state_is_spent_is_noticed() -> None:
    world = make_world()
    host = acting(world)
    host.save(UUID, MEMORY, Unwatched())
    host.restore(UUID, MEMORY, Changes(actives(world)))
    host.resume(UUID)
    assert any("before its saved state is spent" in violation for violation in world.violations)


def test_a_saved_state_is_not_loaded_on_other_disks() -> None:
    world = make_world()
    host = acting(world)
    host.save(UUID, MEMORY, Unwatched())
    world.files[SOURCE / "other"] = File(format="qcow2", backing=SOURCE / "guest-b-base.qcow2")
    host.restore(UUID, MEMORY, Changes({"vda": Placed(SOURCE / "other", "qcow2")}))
    assert any("not as it was saved" in violation for violation in world.violations)


def test_a_running_vm_is_never_loaded_a_second_time() -> None:
    world = make_world()
    host = acting(world)
    host.save(UUID, MEMORY, Unwatched())
    host.restore(UUID, MEMORY, Changes(actives(world)))
    host.release(UUID, MEMORY, run=True)
    with pytest.raises(HostRefused):
        host.restore(UUID, MEMORY, Changes(actives(world)))


def test_a_copy_never_overwrites_what_is_not_ours() -> None:
    world = make_world()
    there = Path("/slow/guest-a.img.part")
    world.files[there] = world.files[SOURCE / "guest-b-base.qcow2"]
    host = acting(world)
    transfer = Transfer(BASE, there, Path("/state/bookmarks"))
    with pytest.raises(DestinationExists):
        host.copy(transfer, Unwatched())
    host.drop(transfer)
    assert there in world.files


def test_an_old_epoch_is_refused() -> None:
    world = make_world()
    acting(world, 2).suspend(UUID)
    with pytest.raises(Superseded):
        acting(world, 1).resume(UUID)


def test_a_transient_vm_is_gone_with_its_qemu() -> None:
    world = make_world(persistent=False)
    world.kill_qemu(UUID)
    assert world.machines == {}


def test_a_world_in_a_file_is_seen_by_the_next_process(tmp_path: Path) -> None:
    with InFile(tmp_path / "world").here() as world:
        add_machine(world, "guest", UUID, {"vda": ((BASE, "raw"),)})
    SimulatedHost(InFile(tmp_path / "world"), FencingToken("abcd2345", 1)).suspend(UUID)
    with InFile(tmp_path / "world").here() as world:
        assert world.machines[UUID].power is Power.PAUSED
