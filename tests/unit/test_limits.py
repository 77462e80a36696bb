"""Limits by the hour, on a clock that the test sets: they reach who moves bytes, and who waits to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.worlds import DESTINATION, SOURCE, UUID, quick_folder

from vmferry.cli.calendars import parse_window
from vmferry.errors import Cancelled, UsageError
from vmferry.hosts.simulator.driver import InMemory, SimulatedHosts, World
from vmferry.hosts.simulator.world import add_machine
from vmferry.lab.programs import wait_for
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.limits.shared import Limits
from vmferry.manager.limits.slots import host_slot
from vmferry.manager.store import Store
from vmferry.model import JobState, JobView, MoveRequest, Scope, SharedLimit, Window
from vmferry.transfer import Throttle
from vmferry.transfer.throttle import Gate

pytestmark = pytest.mark.slow

MIB = 1 << 20
OFFICE = parse_window("mon-fri 08:00-18:00=20MiB")
LUNCH = parse_window("mon-fri 12:00-13:00=0")
MONDAY = "2026-03-02"


def at(text: str) -> float:
    return datetime.fromisoformat(f"{MONDAY} {text}").replace(tzinfo=UTC).timestamp()


def utc(at_s: float) -> time.struct_time:
    return time.gmtime(at_s)


class Hand:
    """A clock that is set by hand, forward and back."""

    def __init__(self, text: str) -> None:
        self.set(text)

    def set(self, text: str) -> None:
        self.now_s = at(text)

    def __call__(self) -> float:
        return self.now_s


def of_host(*during: Window, limit: int | None = 200 * MIB) -> SharedLimit:
    return SharedLimit(Scope.HOST, "memory", "", limit, during)


def of_storage(folder: Path, *during: Window, limit: int | None = None) -> SharedLimit:
    return SharedLimit(Scope.STORAGE, "memory", str(folder), limit, during)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@contextmanager
def kept(folder: Path, clock: Hand) -> Iterator[Limits]:
    store = Store(f"sqlite:///{folder / 'vmferry.db'}")
    limits = Limits(store, SimulatedHosts(InMemory(World())), clock, utc)
    limits.start()
    try:
        yield limits
    finally:
        limits.close()
        store.close()


def passing(limits: Limits) -> Throttle:
    """What a job's bytes pass."""
    return Throttle(above=limits.at("memory", (host_slot("memory"), "storage slow of memory")), rank=2)


def test_a_window_begins_and_ends_for_who_is_at_work(folder: Path) -> None:
    clock = Hand("07:59")
    with kept(folder, clock) as limits:
        limits.set(of_host(OFFICE))
        job = passing(limits)
        assert job.tightest_bytes_s == 200 * MIB
        clock.set("08:00")
        wait_for(lambda: job.tightest_bytes_s == 20 * MIB, "the window to begin")
        clock.set("18:00")
        wait_for(lambda: job.tightest_bytes_s == 200 * MIB, "the window to end")


def test_a_clock_that_is_set_back_is_believed(folder: Path) -> None:
    clock = Hand("12:30")
    with kept(folder, clock) as limits:
        limits.set(of_host(LUNCH))
        job = passing(limits)
        assert job.says == "waiting until Mon 13:00: the calendar of host memory lets nothing move"
        clock.set("11:00")
        wait_for(lambda: job.says == "", "the clock to be believed")
        clock.set("12:59")
        wait_for(lambda: job.says.startswith("waiting until Mon 13:00"), "the window to hold again")


def test_a_calendar_outlives_the_worker_and_is_shown_with_what_holds_now(folder: Path) -> None:
    clock = Hand("12:30")
    with kept(folder, clock) as limits:
        limits.set(of_host(OFFICE, LUNCH))
    with kept(folder, clock) as limits:
        assert passing(limits).closed
        [seen] = limits.seen()
        assert (seen.limit_bytes_s, seen.during) == (200 * MIB, (OFFICE, LUNCH))
        assert (seen.now_bytes_s, seen.until) == (0, "2026-03-02T13:00:00+00:00")


def test_another_managers_limit_counts_here_too(folder: Path) -> None:
    with kept(folder, Hand("12:30")) as limits:
        job = passing(limits)
        other = Store(f"sqlite:///{folder / 'vmferry.db'}")
        other.put_limit(of_storage(Path("/slow/vms"), limit=5 * MIB))
        other.close()
        wait_for(lambda: job.tightest_bytes_s == 5 * MIB, "the limit to be heard of", 30)


def test_a_storage_of_two_names_has_the_lower_limit(folder: Path) -> None:
    with kept(folder, Hand("12:30")) as limits:
        limits.set(of_storage(Path("/slow/a"), limit=5 * MIB))
        limits.set(of_storage(Path("/slow/b"), limit=9 * MIB))
        job = passing(limits)
        assert job.tightest_bytes_s == 5 * MIB
        limits.set(of_storage(Path("/slow/a"), LUNCH, limit=None))
        assert job.closed
        limits.set(of_storage(Path("/slow/a"), limit=None))
        assert (job.closed, job.tightest_bytes_s) == ("", 9 * MIB)


def test_what_is_left_out_of_a_change_stays(folder: Path) -> None:
    from vmferry.api.requests import SharedLimitBody

    def ask(**given: object) -> SharedLimit:
        body = SharedLimitBody.model_validate({"scope": "host", "connect": "memory", **given})
        return limits.change(body.scope, body.connect, body.place, body.onto)

    window = {"days": [0, 1, 2, 3, 4], "from_min": 480, "to_min": 1080, "limit_bytes_s": 20 * MIB}
    with kept(folder, Hand("12:30")) as limits:
        assert ask(during=[window]) == of_host(OFFICE, limit=None)
        assert ask(limit_bytes_s=200 * MIB) == of_host(OFFICE)
        assert ask(limit_bytes_s=None) == of_host(OFFICE, limit=None)
        assert ask(during=[]) == of_host(limit=None)
        with pytest.raises(UsageError, match="names its folder"):
            ask(place="/srv")


def test_a_state_folder_from_before_there_were_calendars_keeps_its_limits(folder: Path) -> None:
    url = f"sqlite:///{folder / 'vmferry.db'}"
    before = Store(url)
    before.put_limit(of_host())
    before.close()
    with sa.create_engine(url).begin() as old:
        old.execute(sa.text("DROP TABLE calendars"))
    with kept(folder, Hand("12:30")) as limits:
        assert limits.all() == (of_host(),)


# -- jobs


@contextmanager
def worker(folder: Path, clock: Hand, world: World) -> Iterator[Jobs]:
    jobs = Jobs(folder, SimulatedHosts(InMemory(world)))
    jobs.start()
    jobs.limits.clock, jobs.limits.local = clock, utc
    try:
        yield jobs
    finally:
        jobs.close()


def world_of(*sources: Path) -> World:
    world = World()
    for number, source in enumerate(sources):
        disk = {"vda": ((source / f"vm{number}.img", "raw"),)}
        add_machine(world, f"vm{number}", UUID[:-4] + f"{number:04}", disk)
    return world


def submit(jobs: Jobs, number: int, to: Path = DESTINATION) -> JobView:
    return jobs.submit(MoveRequest(f"vm{number}", "memory", path=to, max_pause_s=60.0))


def reach(jobs: Jobs, id: str, state: JobState) -> JobView:
    wait_for(lambda: jobs.get(id).state is state, f"{id} to be {state}, it is {jobs.get(id)}", 60)
    return jobs.get(id)


def test_a_job_does_not_begin_while_nothing_may_move_says_so_and_holds_nobody_up(folder: Path) -> None:
    clock = Hand("12:30")
    with worker(folder, clock, world_of(SOURCE, Path("/third/vms"))) as jobs:
        jobs.limits.set(of_storage(DESTINATION, LUNCH))
        held = submit(jobs, 0)
        passes = submit(jobs, 1, to=Path("/fourth/vms"))  # needs a slot of the same host
        reach(jobs, passes.id, JobState.DONE)
        view = jobs.get(held.id)
        assert view.state is JobState.QUEUED
        assert view.progress.held == f"waiting until Mon 13:00: the calendar of storage {DESTINATION} lets nothing move"
        clock.set("13:00")
        assert reach(jobs, held.id, JobState.DONE).progress.held == ""


def test_a_watcher_hears_that_a_waiting_job_may_not_begin(folder: Path) -> None:
    clock = Hand("12:30")
    with worker(folder, clock, world_of(SOURCE)) as jobs:
        jobs.limits.set(of_host(LUNCH))
        job = submit(jobs, 0).id
        version, view = jobs.changed(job, 0, 0.0)
        clock.set("13:00")
        while view.state is JobState.QUEUED:
            version, view = jobs.changed(job, version, 60.0)
        reach(jobs, job, JobState.DONE)


def test_a_window_that_begins_before_the_mirror_keeps_it_from_beginning(folder: Path) -> None:
    clock, world = Hand("12:30"), world_of(SOURCE)
    with worker(folder, clock, world) as jobs:
        clock.set("11:59")
        jobs.limits.set(of_host(LUNCH))
        job = submit(jobs, 0).id
        clock.set("12:00")  # a toy host's copies look at no limit
        wait_for(lambda: jobs.get(job).progress.now.startswith("waiting until Mon 13:00"), "the job to wait", 60)
        [machine] = world.machines.values()
        assert machine.live is not None
        assert not machine.live.mirrors
        clock.set("13:00")
        reach(jobs, job, JobState.DONE)
        assert world.violations == []


def test_a_job_that_waits_for_a_window_can_be_cancelled(folder: Path) -> None:
    clock = Hand("12:30")
    with worker(folder, clock, world_of(SOURCE)) as jobs:
        jobs.limits.set(of_host(LUNCH))
        job = submit(jobs, 0).id
        assert jobs.cancel(job).kind == Cancelled.__name__


@pytest.mark.parametrize("left", [MIB, None])
def test_rounds_that_do_not_shrink_while_they_give_way_insist_before_a_person_is_asked(
    folder: Path, left: int | None
) -> None:
    """A quick move would wait for somebody to raise a limit that nobody has set."""
    with worker(folder, Hand("12:30"), world_of(SOURCE)) as jobs:
        gate = jobs.limits.at("memory", (host_slot("memory"),))[-1]
        assert isinstance(gate, Gate)
        gate.give(left, "giving way" if left else "")
        request = MoveRequest("vm0", "memory", path=DESTINATION, via="quick", max_pause_s=0.55)
        job = jobs.submit(request).id
        reach(jobs, job, JobState.PAUSED)
        assert jobs._orders[job].throttle.insists is (left is not None)
        jobs.limit(job, max_pause_s=60.0)
        reach(jobs, job, JobState.DONE)


def test_a_worker_that_is_started_in_a_closed_window_begins_nothing(folder: Path) -> None:
    always = parse_window("daily 00:00-24:00=0")
    world = world_of(SOURCE)
    with worker(folder, Hand("12:30"), world) as jobs:
        jobs.limits.set(of_storage(DESTINATION, always))
        job = submit(jobs, 0).id
    for _ in range(3):
        with worker(folder, Hand("12:30"), world) as jobs:
            assert "lets nothing move" in jobs.get(job).progress.held
            assert jobs.get(job).state is JobState.QUEUED
    with worker(folder, Hand("12:30"), world) as jobs:
        jobs.limits.set(of_storage(DESTINATION))
        reach(jobs, job, JobState.DONE)
