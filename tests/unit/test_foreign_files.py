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


BASE = Path("/fast/vms/guest-b-base.qcow2")
FIRST = Path("/fast/vms/guest-b.qcow2.vmferry-abcd2345.r0.qcow2")


def swapped(bench: Bench, path: Path, when: Callable[[], bool]) -> list[File]:
    """Have somebody put another file under this path, once: [the VM's own, theirs] when it was done."""
    files: list[File] = []

    def hook(_: Moment, _world: World) -> None:
        if not files and when() and path in bench.world.files:
            own = bench.world.files[path]
            files.extend((own, File(dict.fromkeys(range(6), -7), own.format)))
            bench.world.files[path] = files[1]

    bench.hook = hook
    return files


@pytest.mark.parametrize("path", (BASE, FIRST), ids=("base", "overlay"))
@pytest.mark.parametrize("later", (0, 1))
@pytest.mark.parametrize("scenario", [MOVES[1], MOVES[3]], ids=str)
def test_another_file_under_the_name_of_the_vms_own_is_neither_read_nor_written(
    scenario: Scenario, later: int, path: Path
) -> None:
    """QEMU has open what it opened. No copy goes either, which may be all that is left."""
    names = STRATEGIES[scenario.technology].names
    step = names[names.index("Rounds") + later]
    copies: list[bool] = []
    clean: list[bool] = []

    def mend(world: World) -> None:
        copies.append(all(image.destination in there(bench).files for image in bench.plan.images))
        clean.append(files[1].blocks == dict.fromkeys(range(6), -7) and world.files[path] is files[1])
        world.files[path] = files[0]
        world.violations.clear()  # this world's QEMU opens by name at each write: it read theirs

    bench = Attended(scenario, mend=mend)
    second = FIRST.with_name(FIRST.name.replace(".r0.", ".r1."))
    files = swapped(bench, path, lambda: begun(bench, step) and second in bench.world.files)
    assert bench.run() is JobState.UNDONE
    assert copies == clean == [True]
    assert "was removed or replaced while guest runs on it" in bench.stuck[0]
    assert not broken(bench, JobState.UNDONE)


@pytest.mark.parametrize("path", (BASE, FIRST), ids=("base", "overlay"))
def test_nothing_is_merged_into_another_file_when_a_vm_that_has_stopped_is_put_back(path: Path) -> None:
    scenario = MOVES[1]
    clean: list[bool] = []

    def mend(world: World) -> None:
        clean.append(files[1].blocks == dict.fromkeys(range(6), -7))
        world.files[path] = files[0]
        world.violations.clear()

    bench = Attended(scenario, mend=mend)
    files = swapped(bench, path, lambda: begun(bench, "CompareBase"))
    swap = bench.hook
    stopped: list[bool] = []

    def hook(moment: Moment, world: World) -> None:
        assert swap is not None
        swap(moment, world)
        if files and not stopped:
            stopped.append(True)
            bench.world.kill_qemu(UUID)

    bench.hook = hook
    assert bench.run() is JobState.UNDONE
    assert clean == [True]
    assert "is gone or another file now" in bench.stuck[0]
    assert not broken(bench, JobState.UNDONE, qemu_died=True)


def test_a_copy_of_the_copy_is_as_good_as_what_was_lost() -> None:
    """Byte for byte, of a VM that is off: nobody has the lost file any more."""
    bench = Attended(MOVES[1], cancel_at=STRATEGIES[Technology.QUICK].names.index("Rounds") + 1)
    done: list[bool] = []

    def mend(world: World) -> None:
        done.append(True)
        copy = next(image.destination for image in bench.plan.images if image.source == BASE)
        found = world.files[copy]
        world.files[BASE] = File(dict(found.blocks), found.format)
        world.violations.clear()

    bench.mend = mend

    def hook(_: Moment, _world: World) -> None:
        if bench.cancelled and BASE in bench.world.files and not done:
            bench.world.kill_qemu(UUID) if bench.world.machine(UUID).live else None
            del bench.world.files[BASE]

    bench.hook = hook
    assert bench.run() is JobState.UNDONE
    assert done == [True]
    assert not broken(bench, JobState.UNDONE, qemu_died=True)


@pytest.mark.parametrize("keep", (False, True))
@pytest.mark.parametrize("technology", (Technology.LIVE, Technology.QUICK, Technology.OFFLINE, Technology.LAN))
def test_a_strangers_file_at_the_sources_path_stays_at_the_end(technology: Technology, *, keep: bool) -> None:
    power = Power.OFF if technology in (Technology.OFFLINE, Technology.LAN) else Power.RUNNING
    bench = Bench(Scenario(technology, power, keep_source=keep))
    files = swapped(bench, BASE, lambda: begun(bench, "Retire"))
    assert bench.run() is JobState.DONE
    assert bench.world.files[BASE] is files[1]
    assert files[1].blocks == dict.fromkeys(range(6), -7)
    assert "another file than was copied" in str(bench.known[f"outcome:{BASE}"])
    if keep and power is Power.RUNNING:
        assert any(str(FIRST.name) in str(path) for path in bench.world.files), "what the kept source lacks is gone"


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
