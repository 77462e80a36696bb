"""A definition that was put back to what it was before the job: what the guest wrote since is kept, whatever runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.worlds import OVERLAYS, UUID, Bench, Scenario, broken

from vmferry.hosts.simulator.driver import Moment, World
from vmferry.hosts.simulator.world import Live
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import JobState, Power, Technology

HERE = [
    Scenario(Technology.LIVE, Power.RUNNING, rounds=1),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, rounds=1),
]
STEPS = ("CopyBase", "CompareBase", "Rounds")


def put_back(bench: Bench, step: str, *, starts: bool) -> list[bool]:
    """`virsh define` of the XML of before, and the VM is stopped; with `starts` it is started from that."""
    done: list[bool] = []
    before = {disk.target: disk.from_ for disk in bench.plan.disks}

    def hook(_: Moment, _world: World) -> None:
        if done or ("do", step) not in {(act, name) for act, name, _, _ in bench.acts}:
            return
        machine = bench.world.machine(UUID)
        if machine.live is None or machine.live.disks == before:
            return
        done.append(True)
        machine.definition = dict(before)
        machine.live = Live(dict(before), Power.RUNNING) if starts else None
        if starts:
            bench.world.frozen.clear()  # its guest writes there

    bench.hook = hook
    return done


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scenario", HERE, ids=str)
def test_overlays_that_only_a_definition_leaves_out_are_merged(scenario: Scenario, step: str) -> None:
    """Seen: "all that it wrote is kept", and 241 of 241 acknowledged writes since the freeze were gone."""
    bench = Bench(scenario, cancel_at=STRATEGIES[scenario.technology].names.index("Rounds") + 1)
    done = put_back(bench, step, starts=False)
    bench.world.violations.clear()
    assert bench.run() is JobState.UNDONE
    assert done
    bench.world.violations.clear()  # while it was off its definition named what lacked its writes; now it must not
    assert not broken(bench, JobState.UNDONE, qemu_died=True)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scenario", HERE, ids=str)
def test_overlays_without_which_the_vm_has_run_are_kept_and_named(scenario: Scenario, step: str) -> None:
    """What it wrote before and after does not fit together: nobody but a person can say what counts."""
    bench = Bench(scenario, cancel_at=STRATEGIES[scenario.technology].names.index("Rounds") + 1)
    done = put_back(bench, step, starts=True)
    assert bench.run() is JobState.UNDONE
    assert done
    kept = bench.known["unmerged"]
    assert isinstance(kept, list) and len(kept) >= len(bench.plan.disks)
    assert set(kept) <= set(map(str, bench.world.files))
    live = bench.world.machine(UUID).live
    assert live is not None and live.disks == {disk.target: disk.from_ for disk in bench.plan.disks}


@pytest.mark.parametrize("starts", (False, True))
def test_of_a_device_it_cannot_be_told_so_the_overlays_are_kept(*, starts: bool) -> None:
    scenario = Scenario(Technology.LIVE, Power.RUNNING, rounds=1, volumes=frozenset({"from", "to"}))
    bench = Bench(scenario, cancel_at=STRATEGIES[scenario.technology].names.index("Rounds") + 1)
    done = put_back(bench, "CopyBase", starts=starts)
    assert bench.run() is JobState.UNDONE
    assert done
    kept = bench.known["unmerged"]
    assert isinstance(kept, list) and set(kept) <= set(map(str, bench.world.files))
    assert {Path(str(path)).parent for path in kept} >= {OVERLAYS}, kept
