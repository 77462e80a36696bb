"""Jobs on a toy host, with the real engine and store."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.jobs import DEADLINE_S, Gate, ended, request, until, worker, world_of
from tests.support.worlds import DESTINATION, SOURCE, UUID, quick_folder

from vmferry.errors import (
    AmbiguousJob,
    NoSuchJob,
    PlanChanged,
    Refused,
    UsageError,
    VmBusy,
    WorkerRunning,
    WrongState,
)
from vmferry.hosts.simulator.driver import InMemory, Moment, SimulatedHosts, World
from vmferry.hosts.simulator.world import File, add_machine
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.limits.slots import HOST_SLOTS
from vmferry.migration.saga import Strategy
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import (
    FINAL,
    JobState,
    Power,
    Scope,
    SharedLimit,
    Technology,
    Where,
)
from vmferry.model.names import LETTERS

pytestmark = pytest.mark.slow


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


def test_disks_of_one_name_go_to_folders_of_their_own(tmp_path: Path) -> None:
    """Each copy needs bookmarks of its own: they were named after the file alone."""
    world = World()
    disks = {target: ((Path(f"/fast/{target}/disk.img"), "raw"),) for target in ("vda", "vdb")}
    add_machine(world, "vm0", UUID, disks)
    to: dict[str, Where] = {target: Path(f"/slow/{target}") for target in disks}
    with worker(tmp_path, world) as jobs:
        view = ended(jobs, jobs.submit(request(path=None, disks=to)).id)
        assert (view.state, view.sentence) == (JobState.DONE, "")


@pytest.mark.parametrize("via", ["live", "quick"])
def test_a_submitted_job_runs_to_its_end_and_leaves_a_receipt(tmp_path: Path, via: str) -> None:
    world = world_of(1)
    with worker(tmp_path, world) as jobs:
        view = jobs.submit(request(via=via))
        view = ended(jobs, view.id)
        assert (view.state, view.sentence) == (JobState.DONE, "")
        receipt = jobs.receipt(view.id[:4])
        assert receipt.verified
        assert receipt.disks[0].to == str(DESTINATION / "vm0.img")
        assert receipt.disks[0].root_hash.startswith("root of")
        assert receipt.disks[0].copied_bytes > 0
        assert jobs.in_flight() == 0
        assert jobs.leftovers("memory") == []
    world.check()
    assert world.violations == []


def test_the_steps_of_a_job_stand_in_its_journal(tmp_path: Path) -> None:
    with worker(tmp_path, world_of(1)) as jobs:
        view = ended(jobs, jobs.submit(request(via="live")).id)
    assert [line.step for line in view.journal] == list(view.plan.steps)
    assert all(line.ok for line in view.journal)


def test_a_vm_that_is_being_moved_is_not_moved_twice(tmp_path: Path) -> None:
    with worker(tmp_path, world_of(1), Gate()) as jobs:
        first = jobs.submit(request())
        for asked in (jobs.submit, jobs.plan):
            with pytest.raises(VmBusy, match=first.id):
                asked(request())
        assert len(jobs.list()) == 1


def test_what_preflight_finds_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with worker(tmp_path, world_of(1)) as jobs:
        with pytest.raises(Refused):
            jobs.submit(request(path=SOURCE))
        with pytest.raises(UsageError):
            jobs.submit(request(limit_bytes_s=0))
        assert jobs.list() == []


def test_a_cancelled_job_is_undone(tmp_path: Path) -> None:
    gate, world = Gate(), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = jobs.submit(request())
        assert gate.reached.wait(DEADLINE_S)
        assert jobs.cancel(view.id).cancel_asked
        gate.open.set()
        view = ended(jobs, view.id)
        assert (view.state, view.kind) == (JobState.UNDONE, "Cancelled")
        with pytest.raises(WrongState):
            jobs.cancel(view.id)
        with pytest.raises(WrongState):
            jobs.receipt(view.id)
    assert world.machines[UUID[:-4] + "0000"].disks["vda"].path == SOURCE / "vm0.img"


def test_a_job_past_its_point_of_no_return_is_not_cancelled(tmp_path: Path) -> None:
    gate = Gate("rewrite_snapshots")
    with worker(tmp_path, world_of(1), gate) as jobs:
        view = jobs.submit(request(via="live"))
        assert gate.reached.wait(DEADLINE_S)
        with pytest.raises(WrongState):
            jobs.cancel(view.id)
        gate.open.set()
        assert ended(jobs, view.id).state is JobState.DONE


def test_more_jobs_than_slots_wait_in_their_order(tmp_path: Path) -> None:
    gate = Gate()
    with worker(tmp_path, world_of(HOST_SLOTS + 3), gate) as jobs:
        ids = [jobs.submit(request(number)).id for number in range(HOST_SLOTS + 3)]
        until(lambda: sum(view.state is JobState.RUNNING for view in jobs.list()) == HOST_SLOTS)
        waiting = [view.id for view in jobs.list() if view.state is JobState.QUEUED]
        assert waiting == ids[: HOST_SLOTS - 1 : -1]
        assert jobs.cancel(ids[-1]).state is JobState.FAILED
        assert jobs.get(ids[-1]).kind == "Cancelled"
        gate.open.set()
        jobs.recover()
        assert [jobs.get(id).state for id in ids[:-1]] == [JobState.DONE] * (HOST_SLOTS + 2)


def _lun(world: World) -> Path:
    lun = Path("/dev/sdx")
    world.volumes.add(lun)
    world.files[lun] = File()
    return lun


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_volume_that_was_filled_while_the_job_waited_is_overwritten_only_if_that_was_asked(
    tmp_path: Path, *, overwrite: bool
) -> None:
    gate, world = Gate(), world_of(HOST_SLOTS + 1)
    lun = _lun(world)
    with worker(tmp_path, world, gate) as jobs:
        for number in range(HOST_SLOTS):
            jobs.submit(request(number))
        waits = jobs.submit(request(HOST_SLOTS, path=None, disks={"vda": lun}, overwrite=overwrite))
        assert jobs.get(waits.id).state is JobState.QUEUED
        world.files[lun].write(0, 7)
        gate.open.set()
        view = ended(jobs, waits.id)
        jobs.recover()
    assert view.state is (JobState.DONE if overwrite else JobState.UNDONE)
    assert (world.files[lun].blocks == {0: 7}) is not overwrite
    assert ("not empty" in view.sentence) is not overwrite


def test_a_volume_that_another_vm_got_while_the_job_waited_is_left_alone(tmp_path: Path) -> None:
    gate, world = Gate(), world_of(HOST_SLOTS + 1)
    lun = _lun(world)
    with worker(tmp_path, world, gate) as jobs:
        for number in range(HOST_SLOTS):
            jobs.submit(request(number))
        waits = jobs.submit(request(HOST_SLOTS, path=None, disks={"vda": lun}, overwrite=True))
        add_machine(world, "db", UUID[:-4] + "9999", {"vda": ((lun, "raw"),)})
        gate.open.set()
        view = ended(jobs, waits.id)
        jobs.recover()
    assert (view.state, view.kind) == (JobState.UNDONE, "VolumeChanged")
    assert "needed by VM db" in view.sentence


def test_a_new_worker_goes_on_with_what_the_last_one_left(tmp_path: Path) -> None:
    gate, world = Gate("copy part"), world_of(1)
    with worker(tmp_path, world, gate) as jobs:
        view = jobs.submit(request())
        assert gate.reached.wait(DEADLINE_S)
        closing = threading.Thread(target=jobs.close)
        closing.start()
        until(lambda: jobs._orders[view.id].stop)
        gate.open.set()
        closing.join()
        jobs.close = lambda: None  # type: ignore[method-assign]
    assert world.machines[UUID[:-4] + "0000"].disks["vda"].path != DESTINATION / "vm0.img"
    with worker(tmp_path, world) as jobs:
        [found] = jobs.recover(DEADLINE_S)
    assert (found.id, found.state) == (view.id, JobState.DONE)


def test_a_second_worker_for_the_same_state_is_refused(tmp_path: Path) -> None:
    with worker(tmp_path, world_of(0)), pytest.raises(WorkerRunning):
        Jobs(tmp_path, SimulatedHosts(InMemory(World()))).start()


def test_a_stuck_job_goes_on_when_an_operator_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmferry.migration.saga.RETRY_S", 0.01)
    broken = True

    def hook(moment: Moment, world: World) -> None:
        if moment.call == "rewrite_snapshots" and broken:
            raise OSError("the disk is on fire")

    with worker(tmp_path, world_of(1), hook) as jobs:
        view = jobs.submit(request(via="live"))
        until(lambda: jobs.get(view.id).state is JobState.STUCK)
        assert "on fire" in jobs.get(view.id).sentence
        assert jobs.in_flight() == 0
    with worker(tmp_path, world_of(1), hook) as jobs:
        assert jobs.get(view.id).state is JobState.STUCK


def test_a_stuck_job_survives_a_restart_and_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmferry.migration.saga.RETRY_S", 0.01)
    world = world_of(1)

    def on_fire(moment: Moment, world: World) -> None:
        if moment.call == "rewrite_snapshots":
            raise OSError("the disk is on fire")

    with worker(tmp_path, world, on_fire) as jobs:
        view = jobs.submit(request(via="live"))
        until(lambda: jobs.get(view.id).state is JobState.STUCK)
    with worker(tmp_path, world) as jobs:
        for asked in (jobs.submit, jobs.plan):
            with pytest.raises(VmBusy, match=view.id):
                asked(request())
        jobs.retry(view.id)
        assert ended(jobs, view.id).state is JobState.DONE
    assert world.violations == []


def test_a_plan_of_other_steps_sticks_and_goes_on_with_the_version_that_made_it(tmp_path: Path) -> None:
    gate, world = Gate("copy part"), world_of(1)

    def shorter(technology: Technology) -> Strategy:
        strategy = STRATEGIES[technology]
        return replace(strategy, steps=strategy.steps[:-1])

    with worker(tmp_path, world, gate) as jobs:
        view = jobs.submit(request())
        assert gate.reached.wait(DEADLINE_S)
        for orders in jobs._orders.values():
            orders.set(stop=True)
    with worker(tmp_path, world, strategies=shorter) as jobs:
        until(lambda: jobs.get(view.id).state is JobState.STUCK)
        assert jobs.get(view.id).kind == "PlanChanged"
        with pytest.raises(PlanChanged):
            jobs.retry(view.id)
    with worker(tmp_path, world) as jobs:
        assert ended(jobs, view.id).state is JobState.DONE


def test_an_undone_job_is_submitted_again_by_retry(tmp_path: Path) -> None:
    gate = Gate()
    with worker(tmp_path, world_of(1), gate) as jobs:
        view = jobs.submit(request())
        assert gate.reached.wait(DEADLINE_S)
        jobs.cancel(view.id)
        gate.open.set()
        ended(jobs, view.id)
        again = jobs.retry(view.id)
        assert again.id != view.id
        assert ended(jobs, again.id).state is JobState.DONE


def test_limits_reach_a_running_job(tmp_path: Path) -> None:
    gate = Gate()
    with worker(tmp_path, world_of(1), gate) as jobs:
        view = jobs.submit(request(limit_bytes_s=1000))
        assert gate.reached.wait(DEADLINE_S)
        view = jobs.limit(view.id, limit_bytes_s=None, max_pause_s=9.0)
        assert (view.limit_bytes_s, view.max_pause_s) == (None, 9.0)
        assert jobs._orders[view.id].throttle.limit_bytes_s is None
        with pytest.raises(UsageError):
            jobs.limit(view.id, max_pause_s=-1.0)


def test_a_watcher_sees_each_change(tmp_path: Path) -> None:
    with worker(tmp_path, world_of(1)) as jobs:
        view = jobs.submit(request(via="quick"))
        version, seen = jobs.changed(view.id, 0, 0.0)
        while seen.state not in FINAL:
            version, seen = jobs.changed(view.id, version, DEADLINE_S)
        assert seen.state is JobState.DONE
        assert seen.progress.step == seen.progress.steps == len(seen.plan.steps)


def test_ids_may_be_shortened_while_they_mean_one_job(tmp_path: Path) -> None:
    with worker(tmp_path, world_of(len(LETTERS) + 1)) as jobs:
        ids: list[str] = []
        while len({id[0] for id in ids}) == len(ids):
            ids.append(jobs.submit(request(len(ids))).id)
            ended(jobs, ids[-1])
        with pytest.raises(AmbiguousJob):
            jobs.get(ids[-1][0])
        assert jobs.get(ids[-1]).id == ids[-1]
        with pytest.raises(NoSuchJob):
            jobs.get("l")


def test_only_leftovers_of_ended_jobs_are_reaped(tmp_path: Path) -> None:
    world = world_of(1)
    with worker(tmp_path, world) as jobs:
        view = ended(jobs, jobs.submit(request()).id)
        ours = DESTINATION / f"vm0.img.vmferry-{view.id}.part"
        strange = DESTINATION / "vm0.img.vmferry-zzzzzzzz.part"
        for path in (ours, strange):
            world.files[path] = world.files[DESTINATION / "vm0.img"]
        assert sorted(jobs.leftovers("memory")) == sorted([str(ours), str(strange)])
        assert jobs.reap("memory") == [str(ours)]
        assert jobs.leftovers("memory") == [str(strange)]


@pytest.mark.parametrize("folder", [DESTINATION, Path("/backup")], ids=["where its copy would lie", "elsewhere"])
def test_somebodys_copy_of_an_overlay_is_no_leftover_of_the_job(tmp_path: Path, folder: Path) -> None:
    world = world_of(1)
    with worker(tmp_path, world) as jobs:
        view = ended(jobs, jobs.submit(request()).id)
        copy = folder / f"vm0.img.vmferry-{view.id}.r0.qcow2"
        world.files[copy] = File(format="qcow2")
        told = [f"{copy}, which is somebody's copy of a file of that job"] if folder == DESTINATION else []
        assert jobs.leftovers("memory") == told
        assert jobs.reap("memory") == []
        assert copy in world.files


def test_a_file_that_another_job_is_making_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    """The second would be undone once it had copied all, with the words that the first one's copy be moved away."""
    gate = Gate()
    world = world_of(1)
    add_machine(world, "vm9", UUID.replace("1", "9"), {"vda": ((Path("/else/vm0.img"), "raw"),)})
    with worker(tmp_path, world, gate) as jobs:
        first = jobs.submit(request())
        until(gate.reached.is_set)
        with pytest.raises(Refused, match=f"is being made by job {first.id}, which moves VM vm0"):
            jobs.submit(replace(request(), vm="vm9"))
        jobs.submit(replace(request(), vm="vm9", path=Path("/third")))


def test_a_leftover_that_somebody_needs_is_listed_with_that_and_stays(tmp_path: Path) -> None:
    """An overlay of an ended job that a VM runs on, and the one below it."""
    world = world_of(1)
    with worker(tmp_path, world) as jobs:
        view = ended(jobs, jobs.submit(request()).id)
        below, above, alone = (SOURCE / f"vm0.img.vmferry-{view.id}.r{n}.qcow2" for n in range(3))
        world.files[below] = File()
        world.files[above] = File(backing=below)
        world.files[alone] = File(backing=DESTINATION / "vm0.img")
        add_machine(world, "other", UUID.replace("1", "9"), {"vda": ((above, "qcow2"),)}, Power.OFF)
        assert jobs.reap("memory") == [str(alone)]
        assert {below, above} <= world.files.keys()
        left = jobs.leftovers("memory")
        assert [str(path) for path in (below, above)] == [told.partition(",")[0] for told in left]
        assert all("VM other" in told for told in left), left


def test_nothing_of_the_engine_is_pickled(tmp_path: Path) -> None:
    import sqlite3

    with worker(tmp_path, world_of(1)) as jobs:
        ended(jobs, jobs.submit(request()).id)
    outputs = sqlite3.connect(tmp_path / "engine.db").execute("SELECT output FROM operation_outputs").fetchall()
    assert outputs
    assert all(isinstance(json.loads(text), dict) for (text,) in outputs)


def test_a_limit_of_a_host_or_storage_counts_for_jobs_that_run_and_outlives_the_worker(tmp_path: Path) -> None:
    gate = Gate()
    shared = SharedLimit(Scope.HOST, "memory", "", 5_000_000)
    with worker(tmp_path, world_of(2), gate) as jobs:
        view = jobs.submit(request())
        until(gate.reached.is_set)
        throttle = jobs._orders[view.id].throttle
        assert throttle.tightest_bytes_s is None
        jobs.limits.set(shared)
        assert throttle.tightest_bytes_s == 5_000_000
        jobs.limits.set(SharedLimit(Scope.STORAGE, "memory", str(DESTINATION), 1_000_000))
        assert throttle.tightest_bytes_s == 1_000_000
        jobs.limits.set(SharedLimit(Scope.STORAGE, "memory", str(DESTINATION), None))
        assert throttle.tightest_bytes_s == 5_000_000
        with pytest.raises(UsageError, match="1 or more"):
            jobs.limits.set(replace(shared, limit_bytes_s=0))
        with pytest.raises(UsageError, match="names its folder"):
            jobs.limits.set(replace(shared, scope=Scope.STORAGE))
    with worker(tmp_path, world_of(2)) as jobs:
        assert shared in jobs.limits.all()
