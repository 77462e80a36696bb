"""The end of a move: whoever comes to need a file while the job runs keeps it, whatever the way of moving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.records import JOB
from tests.support.worlds import SOURCE, UUID, Bench, Scenario, at

from vmferry.hosts.simulator.driver import Moment, World
from vmferry.hosts.simulator.world import File, Machine
from vmferry.manager.jobs.journal import with_remarks
from vmferry.migration.facts import JobFacts
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import JobState, Placed, Power, Technology
from vmferry.model.names import maker_of

LATE = "6f1c3a52-0000-4000-8000-000000000009"
FILES = [SOURCE / "guest-a.img", SOURCE / "guest-b.qcow2", SOURCE / "guest-b-base.qcow2"]
SCENARIOS = [
    Scenario(Technology.LIVE, Power.RUNNING),
    Scenario(Technology.QUICK, Power.RUNNING, rounds=1),
    Scenario(Technology.OFFLINE, Power.OFF),
    Scenario(Technology.OFFLINE, Power.OFF, keep_source=True),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING),
    Scenario(Technology.LAN, Power.OFF, keep_source=True),
]


def comes(world: World, file: Path, how: str) -> Path:
    """Somebody new needs a file. Returns what must be there as well.

    "namesake" is a copy of an overlay under its own name, or another hard link of it.
    """
    overlay = Path("/elsewhere/late.vmferry-abcd2345.r0.qcow2" if how == "namesake" else "/elsewhere/late.qcow2")
    match how:
        case "overlay" | "namesake":
            world.files[overlay] = File(format="qcow2", backing=file)
            return overlay
        case "snapshot":
            world.machines[LATE] = Machine("late", LATE, definition={}, snapshots={"then": {"vda": file}})
        case "nvram":
            world.machines[LATE] = Machine("late", LATE, definition={}, nvram=file)
        case _:
            world.files[overlay] = File(format="qcow2", backing=file)
            world.machines[LATE] = Machine("late", LATE, definition={"vda": Placed(overlay, "qcow2")})
            world.acknowledged[LATE, "vda"] = {}
    return file


def until_retire(scenario: Scenario) -> tuple[int, int]:
    """The world's calls when the first step and when Retire begins, of a job that nobody disturbs."""
    bench = Bench(scenario)
    assert bench.run() is JobState.DONE
    return bench.acts[0][3], next(calls for act, step, _, calls in bench.acts if (act, step) == ("do", "Retire"))


MOMENTS = {scenario: until_retire(scenario) for scenario in SCENARIOS}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SCENARIOS),
    st.sampled_from(FILES),
    st.sampled_from(["overlay", "namesake", "snapshot", "nvram", "vm"]),
    st.floats(0, 1),
)
def test_a_file_that_somebody_comes_to_need_at_any_moment_stays(
    scenario: Scenario, file: Path, how: str, when: float
) -> None:
    wanted: list[Path] = []
    bench = Bench(scenario)
    first, last = MOMENTS[scenario]
    number = first + 1 + round(when * (last - first - 1))
    bench.hook = at(number, "before", lambda world: wanted.append(comes(world, file, how)))
    assert bench.run() is JobState.DONE
    assert wanted, "nobody came"
    assert file in bench.world.files
    assert wanted[0] in bench.world.files
    told = json.loads(str(bench.known[f"outcome:{file}"]))
    assert told["fate"] == "stays"
    assert "late" in told["why"]
    for below in bench.world.below(file):
        assert below in bench.world.files, "what it lies on is gone"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_what_nobody_needs_goes_and_what_became_free_is_told(scenario: Scenario) -> None:
    bench = Bench(scenario)
    assert bench.run() is JobState.DONE
    told = [json.loads(str(bench.known[f"outcome:{file}"])) for file in FILES]
    assert not set(FILES) & bench.world.files.keys()
    assert {each["fate"] for each in told} == {"renamed" if scenario.keep_source else "removed"}
    assert all((each["freed_bytes"] > 0) is not scenario.keep_source for each in told)


def test_a_user_who_comes_between_two_files_keeps_the_second_one() -> None:
    """It is asked before each file, not once for all."""
    bench = Bench(Scenario(Technology.OFFLINE, Power.OFF))
    done: list[bool] = []

    def hook(moment: Moment, world: World) -> None:
        if moment.call == "remove" and FILES[1] not in world.files and not done:
            done.append(True)
            comes(world, FILES[2], "overlay")

    bench.hook = hook
    assert bench.run() is JobState.DONE
    assert done
    assert FILES[2] in bench.world.files
    assert FILES[1] not in bench.world.files


def cloned_meanwhile(bench: Bench, how: str, newest: int = 0) -> list[Path]:
    """Have somebody need the overlay of vdb, once, when this round has begun. The overlay is listed then."""
    cloned: list[Path] = []

    def hook(moment: Moment, _: World) -> None:
        if cloned or moment.call != "compare":
            return
        if (live := bench.world.machine(UUID).live) is not None:
            active = live.disks["vdb"].path
            if f".r{newest}." not in str(active):
                return
            assert isinstance(active, Path) and active.name.endswith(f".vmferry-abcd2345.r{newest}.qcow2")
            cloned.append(active)
            comes(bench.world, active, how)

    bench.hook = hook
    return cloned


@pytest.mark.parametrize("how", ("overlay", "namesake", "vm"))
@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(Technology.LIVE, Power.RUNNING),
        Scenario(Technology.LIVE, Power.RUNNING, keep_source=True),
        Scenario(Technology.QUICK, Power.RUNNING, rounds=1),
        Scenario(Technology.LIVE_RELOCATION, Power.RUNNING),
    ],
    ids=str,
)
def test_an_overlay_of_the_job_that_somebody_has_cloned_stays_with_all_that_it_lies_on(
    scenario: Scenario, how: str
) -> None:
    """Who asks libvirt for the VM's image meanwhile is told of the overlay."""
    bench = Bench(scenario)
    cloned = cloned_meanwhile(bench, how)
    assert bench.run() is JobState.DONE
    assert cloned
    for below in bench.world.below(cloned[0]):
        assert below in bench.world.files, "what it lies on is gone"
    stayed = bench.known["stayed"]
    assert isinstance(stayed, list) and str(cloned[0]) in stayed
    assert json.loads(str(bench.known[f"outcome:{FILES[1]}"]))["fate"] == "stays"
    assert json.loads(str(bench.known[f"outcome:{FILES[0]}"]))["fate"] != "stays"


@pytest.mark.parametrize(
    ("technology", "newest"),
    [(Technology.LIVE, 0), (Technology.QUICK, 0), (Technology.QUICK, 1), (Technology.LIVE_RELOCATION, 0)],
)
def test_an_overlay_that_an_image_lies_on_stays_with_those_below_it_when_the_job_is_undone(
    technology: Technology, newest: int
) -> None:
    after = STRATEGIES[technology].names.index("Rounds") + 1
    bench = Bench(Scenario(technology, Power.RUNNING, rounds=1), cancel_at=after)
    cloned = cloned_meanwhile(bench, "overlay", newest)
    assert bench.run() is JobState.UNDONE
    names = [cloned[0].name.replace(f".r{newest}.", f".r{round_}.") for round_ in range(newest + 1)]
    assert sorted(Path(str(path)).name for path in bench.world.files if maker_of(Path(str(path)).name)) == names
    assert bench.known["stayed"] == [str(cloned[0].with_name(name)) for name in names]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (JobState.UNDONE, "x; left out, its file being gone: sda; not removed, since somebody's image or saved"),
        (JobState.STUCK, "x; left out, its file being gone: sda"),
        (JobState.DONE, "x"),
    ],
)
def test_the_sentence_of_an_undone_job_tells_what_was_left_out_and_what_stays(state: JobState, told: str) -> None:
    facts = JobFacts.of({"ejected": ["sda"], "stayed": ["/new/a.vmferry-abcd2345.r0.qcow2"]})
    sentence = with_remarks(replace(JOB, state=state, sentence="x"), facts).sentence
    assert sentence.startswith(told)
    assert ("/new/a.vmferry-abcd2345.r0.qcow2" in sentence) == (state is JobState.UNDONE)
    assert with_remarks(replace(JOB, state=state, sentence=""), facts).sentence == ""
