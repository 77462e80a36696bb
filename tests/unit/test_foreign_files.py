"""Files that somebody puts where a job has its own, or takes from it: nothing is taken for what it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.worlds import FAR, UUID, Bench, Scenario, broken

from vmferry.hosts.simulator.driver import Moment, World
from vmferry.hosts.simulator.world import File
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import JobState, Placed, Power, Technology

MOVES = [
    Scenario(Technology.LIVE, Power.RUNNING, rounds=1),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, rounds=1),
    Scenario(Technology.QUICK_RELOCATION, Power.RUNNING, rounds=1),
]
CLONE = Path("/elsewhere/clone.qcow2")


@dataclass
class Attended(Bench):
    """A bench with an operator, who does something each time that the job is stuck."""

    mend: Callable[[World], None] = lambda _: None
    waits: list[str] = field(default_factory=list)

    def wait_for_retry(self) -> None:
        super().wait_for_retry()
        self.mend(self.world)


def there(bench: Bench) -> World:
    return bench.world.at(FAR) if bench.plan.relocates else bench.world


def begun(bench: Bench, step: str, act: str = "do") -> bool:
    return any((did, name) == (act, step) for did, name, _, _ in bench.acts)


def once_in(bench: Bench, step: str, deed: Callable[[World], None], act: str = "do") -> list[bool]:
    """Do something once, at the first call of a step. The list is no longer empty then."""
    done: list[bool] = []

    def hook(_: Moment, world: World) -> None:
        if not done and begun(bench, step, act):
            done.append(True)
            deed(bench.world)

    bench.hook = hook
    return done


@pytest.mark.parametrize("scenario", [MOVES[1], MOVES[3]], ids=str)
def test_a_file_that_has_the_name_of_an_overlays_copy_is_never_taken_for_it(scenario: Scenario) -> None:
    """`cp source/* destination/` gives a fuzzy copy of an overlay the very name that its copy has there."""
    bench = Bench(scenario)
    disk = bench.plan.disks[0]
    name = disk.overlay_copies.with_name(f"{disk.overlay_copies.name}.vmferry-abcd2345.r0.qcow2")
    theirs = File({0: -7}, "qcow2")
    done = once_in(bench, "CompareBase", lambda _: there(bench).files.update({name: theirs}))
    assert bench.run() is JobState.UNDONE
    assert done
    assert there(bench).files.pop(name) is theirs
    assert not broken(bench, JobState.UNDONE)


@pytest.mark.parametrize("scenario", [*MOVES, Scenario(Technology.OFFLINE, Power.OFF)], ids=str)
def test_a_copy_that_somebody_has_written_to_is_not_switched_to(scenario: Scenario) -> None:
    bench = Bench(scenario)
    copy = bench.plan.disks[0].active.destination
    after = STRATEGIES[scenario.technology].names.index("Promote") + 1
    step = STRATEGIES[scenario.technology].names[after]
    done = once_in(bench, step, lambda _: there(bench).files[copy].write(2, -7))
    assert bench.run() is JobState.UNDONE
    assert done
    assert not broken(bench, JobState.UNDONE)


@pytest.mark.parametrize("scenario", MOVES, ids=str)
def test_an_undo_brings_the_vm_home_before_it_touches_the_destination(scenario: Scenario) -> None:
    bench = Bench(scenario, cancel_at=STRATEGIES[scenario.technology].names.index("Rounds") + 1)
    assert bench.run() is JobState.UNDONE
    undone = [step for act, step, _, _ in bench.acts if act == "undo"]
    last = [step for step in undone if step in ("Announce", "CopyBase", "Promote", "Rounds", "CopyLast", "CopyFiles")]
    assert undone[-len(last) :] == last
    assert "Freeze" in undone[: -len(last)]


@pytest.mark.parametrize("scenario", MOVES, ids=str)
def test_no_copy_is_dropped_while_an_image_of_the_source_is_gone(scenario: Scenario) -> None:
    """QEMU has it open, and what is merged into it then is gone with QEMU: the copies may be all that is left."""
    source = Path("/fast/vms/guest-b-base.qcow2")
    taken: list[File] = []
    copies: list[bool] = []

    def mend(world: World) -> None:
        copies.append(all(image.destination in there(bench).files for image in bench.plan.images))
        world.files[source] = taken[0]

    bench = Attended(scenario, cancel_at=STRATEGIES[scenario.technology].names.index("Rounds") + 1, mend=mend)

    def hook(_: Moment, _world: World) -> None:
        if not taken and bench.cancelled:
            taken.append(bench.world.files[source])
            bench.world.files[source] = File(dict(taken[0].blocks), taken[0].format, taken[0].backing, inode=99)

    bench.hook = hook
    assert bench.run() is JobState.UNDONE
    assert copies == [True]
    assert "removed or replaced while guest runs on it" in bench.stuck[0]
    assert not broken(bench, JobState.UNDONE)


@pytest.mark.parametrize("scenario", MOVES, ids=str)
def test_a_copy_that_somebody_has_cloned_stays_when_the_job_is_undone(scenario: Scenario) -> None:
    after = STRATEGIES[scenario.technology].names.index("Rounds") + 1
    bench = Bench(scenario, cancel_at=after)
    copy = bench.plan.disks[1].active.destination

    def clone(_: World) -> None:
        there(bench).files[CLONE] = File(format="qcow2", backing=copy)

    done = once_in(bench, "Rounds", clone)
    assert bench.run() is JobState.UNDONE
    assert done
    below = there(bench).below(CLONE)
    assert len(below) == 3 and all(path in there(bench).files for path in below)
    assert set(map(str, below[1:])) <= set(bench.known["stayed"] or ())  # type: ignore[arg-type]
    for path in below:
        del there(bench).files[path]
    assert not broken(bench, JobState.UNDONE)


@pytest.mark.parametrize("scenario", MOVES[:2], ids=str)
def test_an_undo_waits_while_the_vm_runs_from_a_copy_by_hand(scenario: Scenario) -> None:
    bench = Bench(scenario, cancel_at=STRATEGIES[scenario.technology].names.index("Rounds") + 1)
    heard: list[str] = []
    was: list[dict[str, Placed]] = []
    copies = {disk.target: disk.to for disk in bench.plan.disks}

    def on_copies(world: World) -> None:
        live = world.machine(UUID).live
        assert live is not None
        was.append(dict(live.disks))
        live.disks.update(copies)
        live.power = Power.PAUSED  # it writes nothing there, so that it can go back

    def back(said: str) -> None:
        heard.append(said)
        live = bench.world.machine(UUID).live
        assert live is not None
        assert all(placed.path in bench.world.files for placed in copies.values()), "a copy that the VM is on was taken"
        live.disks.update(was[0])
        live.power = Power.RUNNING
        bench.world.violations.clear()  # what the copies lacked is on the overlays, and those are all there

    bench.heard = back

    def when_cancelled(_: Moment, _world: World) -> None:
        if bench.cancelled and not was:
            on_copies(bench.world)

    bench.hook = when_cancelled
    assert bench.run() is JobState.UNDONE
    assert len(heard) == 1
    assert "is needed by guest" in heard[0]
    assert not broken(bench, JobState.UNDONE)
