"""Another person or tool acts on the VM at any instant of any strategy: nothing of theirs, nor of the guest's, is lost.

VMFERRY_EVERY=1 takes every instant; the default takes each n-th, another n-th for each strategy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.crash_matrix import kill_qemu, moments
from tests.support.sampling import SAMPLE, sampled
from tests.support.worlds import FAR, UUID, Bench, Scenario, at, kill

from vmferry.hosts.simulator import others
from vmferry.hosts.simulator.calls import Killed
from vmferry.hosts.simulator.driver import Moment, World
from vmferry.hosts.simulator.world import Machine
from vmferry.model import JobState, Power, Technology, Where

SCENARIOS = [
    Scenario(Technology.LIVE, Power.RUNNING),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1),
    Scenario(Technology.QUICK, Power.RUNNING),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING),
    Scenario(Technology.QUICK_RELOCATION, Power.RUNNING, rounds=1),
    Scenario(Technology.LIVE, Power.PAUSED),
]
Act = Callable[[World, str], bool]
ACTS: dict[str, Act] = {
    "snapshot": others.snapshot,
    "merge": others.merge,
    "pull": others.pull,
    "detach": others.detach,
    "managed save": others.managed_save,
    "redefine": others.redefine,
}
EACH = 1 if os.environ.get("VMFERRY_EVERY") else 17


class Disturbed(Bench):
    """A job in which somebody else acts once."""

    def __init__(self, scenario: Scenario, act: Act, moment: Moment) -> None:
        super().__init__(scenario)
        self.theirs: list[Path] = []
        self.there = self.world
        self.redefined: set[Path] = set()
        self.acted = False
        self.hook = at(moment.number, moment.when, lambda world: self._disturb(act, world))

    def _disturb(self, act: Act, world: World) -> None:
        where = world if UUID in world.machines and not world.machines[UUID].placeholder else world.at(FAR)
        before, self.there = set(where.files), where
        self.acted = act(where, UUID)
        self.theirs = [path for path in where.files if path not in before and isinstance(path, Path)]
        if act is others.redefine:
            self.redefined = set(self.theirs)

    def judged(self) -> list[str]:
        """Where the VM is now."""
        worlds = [self.world, self.world.at(FAR)] if self.plan.relocates else [self.world]
        there = [w for w in worlds if UUID in w.machines and not w.machines[UUID].placeholder]
        if len(there) != 1:
            return [f"the VM is on {len(there)} hosts"]
        return broken(self, there[0].machines[UUID], there[0])


def broken(bench: Disturbed, machine: Machine, world: World) -> list[str]:
    """What a person would miss: a write, an image or memory of theirs; and what nobody wants to find."""
    bench.world.check()
    found = list(bench.world.violations)
    found += [f"{path} is left over" for path in world.files if "vmferry-" in str(path)]
    found += [f"{path} is gone" for path in bench.theirs if path not in bench.there.files]
    tops = dict(machine.definition or {}) | {target: image for target, image in machine.disks.items()}
    if machine.managed is not None:
        tops |= machine.managed.disks
        for target, content in machine.managed.content.items():
            if world.content(machine.managed.disks[target].path) != content:
                found.append(f"the memory would be loaded on a {target} that is not as it was")
    for (uuid, target), promised in bench.world.acknowledged.items():
        if uuid == UUID and target in tops and tops[target].path not in bench.redefined:
            held = world.content(tops[target].path)
            found += [f"{target} lost block {b}" for b, stamp in promised.items() if held.get(b) != stamp]
    return found


def instants(scenario: Scenario, name: str) -> list[Moment]:
    _, found = moments(scenario)
    before = [moment for moment in found if moment.when in ("before", "after")]
    first = (SCENARIOS.index(scenario) + list(ACTS).index(name)) % EACH
    return before[first::EACH]


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_whatever_somebody_else_does_at_any_instant_loses_nothing(scenario: Scenario, name: str) -> None:
    for moment in instants(scenario, name):
        bench = Disturbed(scenario, ACTS[name], moment)
        end = bench.run()
        assert end in (JobState.DONE, JobState.UNDONE), moment
        assert bench.judged() == [], (moment, end, bench.stuck)
        assert bench.stuck == [], (moment, end)


@pytest.mark.parametrize(
    ("cut", "stops"),
    [
        ("", False),
        pytest.param("killed", False, marks=pytest.mark.slow),
        pytest.param("cancelled", False, marks=pytest.mark.slow),
        ("killed", True),
        pytest.param("cancelled", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("technology", [Technology.QUICK, Technology.QUICK_RELOCATION])
def test_what_a_guest_writes_that_somebody_starts_while_its_memory_is_saved_is_kept(
    technology: Technology, cut: str, *, stops: bool
) -> None:
    """Also where the worker is killed at that instant, and where the person cancels the job then.

    `stops`: it is shut down again before the worker comes back. In the instant at which the job's own QEMU is let at
    the copies that cannot be told from a QEMU that died loading.
    """
    scenario, started = Scenario(technology, Power.RUNNING, rounds=1), set()
    every = [m for m in moments(scenario)[1] if m.when in ("before", "after")]
    for moment in [m for m in every if not (stops and m.call == "restore")][(len(cut) + stops) % 2 :: 2]:
        bench = Disturbed(scenario, others.start_and_stop if stops else others.start, moment)
        bench.heard = lambda _, bench=bench: kill_qemu(bench.world)  # type: ignore[misc]
        disturb = bench.hook

        def and_cut(moment: Moment, world: World, bench: Disturbed = bench, disturb: object = disturb) -> None:
            acted = bench.acted
            disturb(moment, world)  # type: ignore[operator]
            if bench.acted and not acted and cut:
                bench.cancelled = cut == "cancelled"
                raise Killed

        bench.hook = and_cut
        end = bench.run()
        assert end in (JobState.DONE, JobState.UNDONE), moment
        assert bench.judged() == [], (moment, end, bench.stuck)
        assert bench.stuck == [], (moment, end)
        started |= {moment.call} if bench.acted else set()
    assert "copy part" in started
    assert ("mark_of" in started) or technology is not Technology.QUICK


@pytest.mark.parametrize("name", ["snapshot", "merge", "managed save"])
@pytest.mark.parametrize("scenario", SCENARIOS[:2], ids=str)
def test_a_worker_killed_in_the_undo_that_follows_loses_nothing_either(scenario: Scenario, name: str) -> None:
    _, found = moments(scenario)
    rounds = next(m for m in found if m.call == "freeze" and m.when == "after")
    whole = Disturbed(scenario, ACTS[name], rounds)
    whole.run()
    begun = next(calls for act, _, _, calls in whole.acts if act == "undo")
    for number in range(begun, whole.world.calls, 1 if EACH == 1 else 4):
        for when in ("before", "middle", "after"):
            bench = Disturbed(scenario, ACTS[name], rounds)
            first, cut = bench.hook, at(number, when, kill)
            assert first is not None

            def both(moment: Moment, world: World, first: object = first, cut: object = cut) -> None:
                first(moment, world)  # type: ignore[operator]
                cut(moment, world)  # type: ignore[operator]

            bench.hook = both
            assert bench.run() is JobState.UNDONE, (number, when)
            assert bench.judged() == [], (number, when)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_vm_that_somebody_stops_and_forgets_at_any_instant_leaves_whole_disks_on_one_side(scenario: Scenario) -> None:
    for moment in instants(scenario, "detach"):
        bench = Disturbed(scenario, others.forget, moment)
        ends(bench)
        if not bench.acted:
            continue
        there = bench.world.at(FAR) if bench.plan.relocates else bench.world
        whole = [
            all(lies_whole(bench, world, disk.target, where) for disk, where in each)
            for world, each in (
                (bench.world, [(disk, disk.active.source) for disk in bench.plan.disks]),
                (there, [(disk, disk.active.destination) for disk in bench.plan.disks]),
            )
        ]
        assert any(whole), moment
        assert [v for v in bench.world.violations if "lost" in v or "taken away" in v] == [], moment


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_vm_that_somebody_undefines_at_any_instant_runs_on_and_is_not_defined_again(scenario: Scenario) -> None:
    for moment in sampled([m for m in moments(scenario)[1] if m.when in ("before", "after")]):
        bench = Disturbed(scenario, others.undefine, moment)
        end = bench.run()
        if not bench.acted:
            continue
        [machine] = [w.machines[UUID] for w in (bench.world, *bench.world.peers.values()) if UUID in w.machines]
        assert machine.power is scenario.power, (moment, end, bench.stuck)
        if moment.call not in ("defined", "relinquish"):  # by then it is written down for the other host
            assert machine.definition is None, (moment, end)
        assert bench.judged() == [], (moment, end, bench.stuck)
        assert bench.stuck == [], (moment, end)


@pytest.mark.parametrize("technology", [Technology.QUICK, Technology.QUICK_RELOCATION])
def test_a_snapshot_that_somebody_takes_while_the_memory_is_saved_lies_on_whole_images(technology: Technology) -> None:
    """And the guest runs on it, as after any snapshot of a VM that is off."""
    scenario, undone = Scenario(technology, Power.RUNNING, rounds=1), 0
    for moment in sampled([m for m in moments(scenario)[1] if m.when in ("before", "after")]):
        bench = Disturbed(scenario, others.snapshot_off, moment)
        end = bench.run()
        if not bench.acted:
            continue
        assert bench.judged() == [], (moment, end, bench.stuck)
        assert bench.stuck == [], (moment, end)
        for path in bench.theirs:
            assert all(below in bench.there.files for below in bench.there.chain(path)), (moment, end)
        undone += end is JobState.UNDONE
    assert undone > 10 // SAMPLE


def test_a_disk_that_somebody_attaches_meanwhile_is_told_in_the_receipt() -> None:
    bench = done_with(Technology.LIVE, others.attach, "mirror")
    assert bench.known["stayed"] == ["/fast/vms/attached.img (vdx)"]


@pytest.mark.parametrize("technology", [Technology.LIVE_RELOCATION, Technology.QUICK_RELOCATION])
def test_an_image_chosen_for_the_next_start_that_stays_at_the_source_is_told_in_the_receipt(
    technology: Technology,
) -> None:
    bench = done_with(technology, others.redefine, "compare")
    assert bench.known["next_start"] == ["vdb"]


def done_with(technology: Technology, act: Act, call: str) -> Disturbed:
    """A job that is done although somebody acted just before the first such call of it."""
    scenario = Scenario(technology, Power.RUNNING)
    moment = next(m for m in moments(scenario)[1] if m.call == call and m.when == "before")
    bench = Disturbed(scenario, act, moment)
    assert bench.run() is JobState.DONE
    assert bench.acted
    assert bench.judged() == []
    return bench


def ends(bench: Disturbed) -> None:
    """Done, undone, or asking an operator: nothing can be done for a VM that nobody knows any more."""
    try:
        bench.run()
    except AssertionError:
        assert bench.stuck


def lies_whole(bench: Disturbed, world: World, target: str, where: Where) -> bool:
    held = world.content(where) if where in world.files else {}
    return bench.world.acknowledged[UUID, target].items() <= held.items()
