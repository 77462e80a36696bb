"""Every strategy is cut at every instant, forward and back, and goes on from its records.

VMFERRY_EVERY=1 takes every cut; the default takes each n-th, another n-th for each scenario.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest
from tests.support.crash_matrix import ENDED, LOOKS, assert_kept, kill_qemu, moments, new
from tests.support.sampling import SAMPLE
from tests.support.worlds import FAR, UUID, Bench, Scenario, at, kill

from vmferry.errors import HostUnreachable, VmHeld
from vmferry.hosts.records import Quiesced
from vmferry.hosts.simulator.driver import Killed, Moment, World
from vmferry.hosts.simulator.world import Live
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import JobState, Power, Technology

SCENARIOS = [
    Scenario(Technology.LIVE, Power.RUNNING),
    Scenario(Technology.LIVE, Power.RUNNING, persistent=False),
    Scenario(Technology.LIVE, Power.RUNNING, quiesces=Quiesced.YES),
    Scenario(Technology.LIVE, Power.RUNNING, quiesces=Quiesced.UNSURE),
    Scenario(Technology.LIVE, Power.PAUSED),
    Scenario(Technology.QUICK, Power.RUNNING),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1),
    Scenario(Technology.QUICK, Power.RUNNING, persistent=False),
    Scenario(Technology.QUICK, Power.RUNNING, quiesces=Quiesced.YES),
    Scenario(Technology.QUICK, Power.PAUSED),
    Scenario(Technology.OFFLINE, Power.OFF),
    Scenario(Technology.LIVE, Power.RUNNING, volumes=frozenset({"to"})),
    Scenario(Technology.LIVE, Power.RUNNING, volumes=frozenset({"to"}), checkpoints=True),
    Scenario(Technology.QUICK, Power.RUNNING, volumes=frozenset({"to"}), checkpoints=True),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1, volumes=frozenset({"from", "to"})),
    Scenario(Technology.OFFLINE, Power.OFF, volumes=frozenset({"from"})),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, nvram=True),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, persistent=False),
    Scenario(Technology.LIVE_RELOCATION, Power.PAUSED),
    Scenario(Technology.QUICK_RELOCATION, Power.RUNNING, nvram=True),
    Scenario(Technology.QUICK_RELOCATION, Power.RUNNING, rounds=1, persistent=False),
    Scenario(Technology.QUICK_RELOCATION, Power.PAUSED),
    Scenario(Technology.LAN, Power.OFF, nvram=True),
]
KEEPING = [
    Scenario(Technology.LIVE, Power.RUNNING, keep_source=True),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1, keep_source=True),
    Scenario(Technology.OFFLINE, Power.OFF, keep_source=True),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, keep_source=True),
    Scenario(Technology.QUICK_RELOCATION, Power.RUNNING, rounds=1, keep_source=True),
    Scenario(Technology.LAN, Power.OFF, keep_source=True),
]


LOOKS |= {"entry", "file_users"}
LOOKS |= {"arrived", "defined", "announced", "definition", "mark_of", "misses", "lacks", "content_of"}
LOOKS |= {"chains", "unchanged_since", "mirroring", "saved", "spent"}
LOOKS |= {"lacks_to_start", "lacks_to_load", "definition_now", "refusal", "probe"}
LOOKS |= {"unchanged_since", "mirroring", "saved", "spent"}


HANDING_OVER = {"relinquish", "migrate", "resume", "release"}

T = TypeVar("T")


def some(scenario: Scenario, cuts: Sequence[T], each: int) -> Sequence[T]:
    if os.environ.get("VMFERRY_EVERY"):
        return cuts
    each *= SAMPLE
    first = SCENARIOS.index(scenario) % each if scenario in SCENARIOS else 0
    return cuts[first::each]


@pytest.mark.parametrize("scenario", SCENARIOS + KEEPING, ids=str)
def test_a_job_that_nobody_disturbs_is_done(scenario: Scenario) -> None:
    bench = new(scenario)
    assert assert_kept(bench, scenario) is JobState.DONE
    assert bench.stuck == []


def test_a_look_at_the_source_just_as_the_guest_has_left_it_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmferry.migration.steps.progress.ROOM_POLL_S", 0.0)
    bench = new(Scenario(Technology.LIVE_RELOCATION, Power.RUNNING))
    assert assert_kept(bench, "migrate") is JobState.DONE
    assert [name for name, outcome in bench.memo.items() if not outcome["ok"]] == []


def test_a_cancel_while_the_agent_is_late_thaws_the_guest_as_well() -> None:
    bench = new(Scenario(Technology.LIVE, Power.RUNNING, quiesces=Quiesced.UNSURE))

    def cancel(moment: Moment, _world: World) -> None:
        bench.cancelled = bench.cancelled or moment.call == "thaw"

    bench.hook = cancel
    assert assert_kept(bench, "thaw") is JobState.UNDONE


def test_an_agent_that_never_says_that_it_has_thawed_is_given_up_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmferry.migration.steps.freeze.THAW_S", 0.0)
    bench = new(Scenario(Technology.LIVE, Power.RUNNING, quiesces=Quiesced.UNSURE))
    bench.world.machine(UUID).slow_thaws = 1000
    assert bench.run() is JobState.DONE
    assert bench.known["thaw_owed"] is True


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_job_cut_inside_any_call_goes_on_and_is_done(scenario: Scenario) -> None:
    _, found = moments(scenario)
    for moment in some(scenario, found, 7):
        bench = new(scenario, hook=at(moment.number, moment.when, kill))
        assert assert_kept(bench, moment) is JobState.DONE, moment


@pytest.mark.parametrize("scenario", [scenario for scenario in SCENARIOS if scenario.nvram], ids=str)
def test_a_job_cut_while_the_vm_is_given_up_loses_no_snapshot(scenario: Scenario) -> None:
    """Seen: the second attempt wrote down a VM whose snapshots the first one had made libvirt forget."""
    _, found = moments(scenario)
    given_up = [moment for moment in found if moment.call == "relinquish"]
    assert given_up
    for moment in given_up:
        bench = new(scenario, hook=at(moment.number, moment.when, kill))
        assert assert_kept(bench, moment) is JobState.DONE, moment


@pytest.mark.parametrize("scenario", SCENARIOS + KEEPING, ids=str)
def test_a_job_cut_before_or_after_any_record_goes_on_and_is_done(scenario: Scenario) -> None:
    whole, _ = moments(scenario)
    for number in range(len(whole.memo)):
        for when in ("before", "after"):
            bench = new(scenario, cut_record=(number, when))
            assert assert_kept(bench, (number, when)) is JobState.DONE, (number, when)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_job_cancelled_at_any_step_leaves_the_source_as_it_was(scenario: Scenario) -> None:
    strategy = STRATEGIES[scenario.technology]
    for step in range(len(strategy.steps)):
        end = assert_kept(bench := new(scenario, cancel_at=step), strategy.names[step])
        assert bench.stuck == [], strategy.names[step]
        assert end is (JobState.UNDONE if step <= strategy.no_return else JobState.DONE), strategy.names[step]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_job_cut_inside_any_call_of_its_undo_is_undone(scenario: Scenario) -> None:
    for step in range(STRATEGIES[scenario.technology].no_return + 1):
        whole, found = moments(scenario, step)
        begun = next(calls for act, _, _, calls in whole.acts if act == "undo")
        for moment in some(scenario, [m for m in found if m.number > begun], 40):
            bench = new(scenario, cancel_at=step, hook=at(moment.number, moment.when, kill))
            assert assert_kept(bench, (step, moment)) is JobState.UNDONE, (step, moment)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_job_cut_before_or_after_any_record_of_its_undo_is_undone(scenario: Scenario) -> None:
    for step in range(STRATEGIES[scenario.technology].no_return + 1):
        whole, _ = moments(scenario, step)
        for number in some(scenario, range(step, len(whole.memo)), 5):
            bench = new(scenario, cancel_at=step, cut_record=(number, "before"))
            assert assert_kept(bench, (step, number)) is JobState.UNDONE, (step, number)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.power is not Power.OFF], ids=str)
def test_no_write_is_lost_when_qemu_dies_at_any_call(scenario: Scenario) -> None:
    _, found = moments(scenario)
    for moment in some(scenario, [m for m in found if m.when == "before"], 9):
        bench = new(scenario, hook=at(moment.number, moment.when, kill_qemu))
        assert_kept(bench, moment, qemu_died=True)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.power is Power.RUNNING], ids=str)
def test_no_write_is_lost_when_the_guest_is_shut_down_at_any_call_of_an_undo(scenario: Scenario) -> None:
    """What is home already may have been written to since: an overlay that is still there must not go over it again."""
    for step in ("Rounds", "Mirror", "Point", "Relinquish"):
        names = STRATEGIES[scenario.technology].names
        if step not in names[: STRATEGIES[scenario.technology].no_return]:
            continue
        whole, found = moments(scenario, names.index(step))
        begun = next(calls for act, _, _, calls in whole.acts if act == "undo")
        for moment in some(scenario, [m for m in found if m.number > begun], 5):
            bench = new(scenario, cancel_at=names.index(step), hook=at(moment.number, moment.when, run_then_shut_down))
            assert_kept(bench, (step, moment), qemu_died=True)


def run_then_shut_down(world: World) -> None:
    """It writes on until then."""
    root = world.root or world
    for _ in range(6):
        root.tick()
    kill_qemu(world)
    raise Killed


@pytest.mark.parametrize("technology", [Technology.LIVE, Technology.QUICK, Technology.LIVE_RELOCATION])
def test_a_vm_that_was_started_again_on_its_overlays_runs_until_it_is_shut_down_and_is_then_undone(
    technology: Technology,
) -> None:
    """QEMU may not write what lay below its disks when it was started: seen under AppArmor, stuck for good."""
    bench = new(Scenario(technology, Power.RUNNING), cancel_at=STRATEGIES[technology].names.index("Rounds"))
    waited: list[str] = []
    started: list[bool] = []

    def start_again(moment: Moment, world: World) -> None:
        if moment.call == "promote" and moment.when == "middle" and not started:
            machine = bench.world.machine(UUID)
            kill_qemu(bench.world)
            machine.live = Live(dict(machine.disks), Power.RUNNING)
            started.append(True)

    def shut_down(why: str) -> None:
        waited.append(why)
        kill_qemu(bench.world)

    bench.hook, bench.heard = start_again, shut_down
    assert assert_kept(bench, technology, qemu_died=True) is JobState.UNDONE
    assert len(waited) == 1
    assert "shut it down when it suits" in waited[0]


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.relocates and s.power is not Power.OFF], ids=str)
def test_no_write_is_lost_when_qemu_dies_at_the_destination_and_the_worker_with_it(scenario: Scenario) -> None:
    """It may have run there since: to go back to the source would lose what it wrote."""
    _, found = moments(scenario)
    sample = some(scenario, found, 12)
    for moment in (m for m in found if m in sample or m.call in HANDING_OVER):
        bench = new(scenario)

        def die(world: World, bench: Bench = bench) -> None:
            bench.world.tick()
            kill_qemu(bench.world.at(FAR))
            raise Killed

        bench.hook = at(moment.number, moment.when, die)
        assert_kept(bench, moment, qemu_died=True)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_host_that_is_away_at_any_call_is_waited_for(scenario: Scenario) -> None:
    _, found = moments(scenario)
    for moment in some(scenario, found, 12):
        bench = new(scenario, hook=at(moment.number, moment.when, go_away))
        assert assert_kept(bench, moment) is JobState.DONE, moment


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_vm_that_libvirt_is_at_work_on_at_any_call_is_waited_for(scenario: Scenario) -> None:
    """libvirt has done nothing then: no call may take it for an answer."""
    _, found = moments(scenario)
    for moment in some(scenario, [m for m in found if m.when == "before"], 6):
        bench = new(scenario, hook=at(moment.number, moment.when, hold))
        assert assert_kept(bench, moment) is JobState.DONE, moment


def hold(_world: World) -> None:
    raise VmHeld(host="memory", action="do it", reason="cannot acquire state change lock")


def go_away(_world: World) -> None:
    raise HostUnreachable(host="memory", reason="connection reset")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_full_destination_undoes_the_job(scenario: Scenario) -> None:
    def fill(world: World) -> None:
        world.full.add("slow")

    bench = new(scenario, hook=at(30, "before", fill))
    end = assert_kept(bench, scenario)
    assert end in ENDED
