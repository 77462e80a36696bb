"""A job that stands still because a person wants it: the VM runs on, and it can go both ways from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import DEADLINE_S, Gate, ended, request, until, worker, world_of
from tests.support.simulated_site import Site
from tests.support.worlds import DESTINATION, SOURCE, UUID, quick_folder

from vmferry.errors import WrongState
from vmferry.hosts.simulator.driver import World
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.store import Store
from vmferry.manager.store.notices import NoticeStore
from vmferry.migration.saga import Strategy
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import JobState, JobView, NoticeState, Power, Receivers

pytestmark = pytest.mark.slow

VM = UUID[:-4] + "0000"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


def suspended(jobs: Jobs, gate: Gate, **given: Any) -> JobView:
    """A job that was met in the call of the gate, and stands still since."""
    view = jobs.submit(request(**given))
    assert gate.reached.wait(DEADLINE_S)
    jobs.suspend(view.id)
    gate.open.set()
    until(lambda: jobs.get(view.id).state is JobState.PAUSED)
    return jobs.get(view.id)


def active(world: World) -> Path:
    image = world.machines[VM].disks["vda"].path
    assert isinstance(image, Path)
    return image


@pytest.mark.parametrize("call", ["copy", "copy part", "compare"])
@pytest.mark.parametrize("via", ["live", "quick"])
def test_a_suspended_job_stands_still_until_it_may_go_on(tmp_path: Path, via: str, call: str) -> None:
    gate, world = Gate(call), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate, via=via)
        assert f"vmferry job resume {view.id}" in view.sentence
        assert jobs.in_flight() == 1
        live = world.machines[VM].live
        assert live is not None
        assert (live.power, active(world).parent) == (Power.RUNNING, SOURCE)
        jobs.resume(view.id)
        view = ended(jobs, view.id)
        assert (view.state, view.sentence) == (JobState.DONE, "")
        assert jobs.receipt(view.id).verified
    assert active(world) == DESTINATION / "vm0.img"
    assert world.violations == []


def test_a_vm_that_is_off_can_stand_still_on_its_way(tmp_path: Path) -> None:
    gate, world = Gate("copy part"), world_of(1, Power.OFF)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate)
        jobs.resume(view.id)
        assert ended(jobs, view.id).state is JobState.DONE


def test_a_suspended_job_can_be_cancelled(tmp_path: Path) -> None:
    gate, world = Gate("copy part"), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate)
        jobs.cancel(view.id)
        view = ended(jobs, view.id)
        assert (view.state, view.kind) == (JobState.UNDONE, "Cancelled")
    assert active(world) == SOURCE / "vm0.img"
    assert [path for path in world.files if str(path).startswith(f"{DESTINATION}/")] == []


def test_a_suspended_job_still_stands_under_the_next_worker_and_is_told_of_once(tmp_path: Path) -> None:
    gate, world = Gate("copy part"), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate, notify=Receivers("true"))
    with worker(tmp_path, world) as jobs:
        until(lambda: jobs.get(view.id).progress.now == "suspended")
        assert jobs.get(view.id).state is JobState.PAUSED
        assert [(n.event, n.state) for n in jobs.get(view.id).notices] == [("paused", NoticeState.WAITING)]
        jobs.resume(view.id)
        assert ended(jobs, view.id).state is JobState.DONE
    notices = NoticeStore(f"sqlite:///{tmp_path / 'vmferry.db'}")
    assert [notice.event for notice in notices.waiting()] == ["paused", "done"]
    notices.close()


def test_a_source_that_fills_up_meanwhile_has_the_job_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, world = Gate("copy part"), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate)
        monkeypatch.setattr("vmferry.migration.steps.progress.SOURCE_FLOOR_BYTES", 1 << 62)
        view = ended(jobs, view.id)
        assert (view.state, view.kind) == (JobState.UNDONE, "SourceFilling")
    assert active(world) == SOURCE / "vm0.img"


def test_an_order_that_comes_before_the_copy_counts_when_it_begins(tmp_path: Path) -> None:
    gate, world = Gate("freeze"), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate)
        assert [line.step for line in view.journal] == ["Reserve", "KeepDefined", "Freeze", "CopyBase"]
        jobs.resume(view.id)
        assert ended(jobs, view.id).state is JobState.DONE


@pytest.mark.parametrize(("call", "via"), [("mirror", "live"), ("save", "quick"), ("rewrite_snapshots", "live")])
def test_in_the_cut_over_and_after_it_nothing_stands_still(tmp_path: Path, call: str, via: str) -> None:
    gate = Gate(call)
    with worker(tmp_path, world_of(1), gate) as jobs:
        view = jobs.submit(request(via=via))
        assert gate.reached.wait(DEADLINE_S)
        with pytest.raises(WrongState, match="before its cut-over"):
            jobs.suspend(view.id)
        gate.open.set()
        assert ended(jobs, view.id).state is JobState.DONE
        for order in (jobs.suspend, jobs.resume):
            with pytest.raises(WrongState):
                order(view.id)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=[str(technology) for technology in STRATEGIES])
def test_no_technology_may_stand_still_where_the_guest_does(strategy: Strategy) -> None:
    stands = [step.name for step in strategy.steps if step.may_stand]
    assert {"CopyBase", "CompareBase"} <= set(stands) <= {"CopyBase", "CompareBase", "Rounds"}
    assert strategy.last_stand < strategy.no_return


def test_suspending_twice_and_resuming_twice_is_as_once(tmp_path: Path) -> None:
    gate, world = Gate("copy part"), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = suspended(jobs, gate)
        jobs.suspend(view.id)
        jobs.resume(view.id)
        jobs.resume(view.id)
        assert ended(jobs, view.id).state is JobState.DONE


def test_a_person_suspends_and_resumes_it_by_command(site: Site) -> None:
    held = site.hold("copy-part")
    id = site.submit()
    site.until_held("copy-part")
    suspending = site.start("job", "suspend", id)
    records = Store(f"sqlite:///{site.state / 'vmferry.db'}")
    until(lambda: records.row(id).suspend_asked)
    held.unlink()
    assert "stands still" in site.ended(suspending).stdout
    shown = site.run("job", "show", id).stdout
    assert f"vmferry job resume {id}" in shown
    site.run("job", "resume", id)
    site.run("job", "watch", id)
    assert site.lies_on() == {"san2"}
