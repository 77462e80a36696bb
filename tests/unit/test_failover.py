"""Several managers on one PostgreSQL: the other ones are stores and locks here, since an engine is one to a process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from tests.support.jobs import DEADLINE_S, Gate, HeldHosts, ended, request, until, world_of
from tests.support.postgres import cluster
from tests.support.records import job
from tests.support.simulated_site import NAME, Site
from tests.support.worlds import DESTINATION, quick_folder

from vmferry import preflight
from vmferry.errors import HostKnown, StorageKnown, StoreAway, Superseded, TransferElsewhere, WorkerRunning
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.manager.jobs import failover
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.limits.slots import HOST_SLOTS
from vmferry.manager.notify.delivery import Delivery
from vmferry.manager.store import NewJob, Store, leases, notices
from vmferry.manager.store.fleet import FleetStore, StorageRow
from vmferry.manager.store.leases import Leases
from vmferry.manager.store.notices import NoticeStore
from vmferry.manager.store.transfers import TransferStore
from vmferry.model import FencingToken, JobState, NoticeState, Progress, Receivers, Scope, SharedLimit
from vmferry.model.transfers import TransferRequest, TransferState
from vmferry.process.state import ManagerIdentity


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "LEASE_POLL_S", 0.05)


@pytest.fixture
def other(records: str) -> Iterator[Store]:
    """Another manager's view of the records."""
    with closing(Store(records, "other", "elsewhere")) as store:
        yield store


def identity(folder: Path, records: str) -> ManagerIdentity:
    return ManagerIdentity.among(folder, folder, records)


@contextmanager
def manager(folder: Path, records: str, world: World, gate: Gate | None = None) -> Iterator[Jobs]:
    gate = gate or opened()
    jobs = Jobs(identity(folder, records), HeldHosts(world, gate))
    jobs.start()
    try:
        yield jobs
    finally:
        gate.open.set()
        jobs.close()


def opened() -> Gate:
    gate = Gate()
    gate.open.set()
    return gate


def planned(number: int = 0) -> NewJob:
    """A job as another manager would queue it."""
    wanted = request(number, via="live")
    host = SimulatedHost(InMemory(world_of(number + 1)))
    plan = preflight.plan(wanted, host, host, {})
    return replace(job(f"other{number:03}"), plan=plan, request=wanted, slots=("host memory",))


def under_way(other: Store, number: int = 0) -> str:
    """One that it has started."""
    other.add(new := planned(number))
    assert other.start_waiting(lambda _slot: HOST_SLOTS) == [new.id]
    return new.id


# -- taking over


@pytest.mark.slow
def test_what_a_manager_that_is_gone_left_is_taken_over_and_done(tmp_path: Path, records: str, other: Store) -> None:
    left = under_way(other)
    with manager(tmp_path, records, world := world_of(1)) as jobs:
        view = ended(jobs, left)
        assert (view.state, view.sentence) == (JobState.DONE, "")
    assert other.row(left).epoch == 2
    with pytest.raises(Superseded):
        other.put_fact(FencingToken(left, 1), "rounds", 1)
    assert world.violations == []


@pytest.mark.slow
def test_a_manager_that_holds_its_lock_keeps_its_jobs(tmp_path: Path, records: str, other: Store) -> None:
    theirs = under_way(other)
    with lasting_presence(records, "other") as lock, manager(tmp_path, records, world_of(2)) as jobs:
        assert ended(jobs, jobs.submit(request(1)).id).state is JobState.DONE
        row = other.row(theirs)
        assert (row.state, row.manager, row.epoch) == (JobState.RUNNING, "other", 1)
        lock.release()
        assert ended(jobs, theirs).state is JobState.DONE


@contextmanager
def closing_presence(records: str, name: str) -> Iterator[Leases]:
    lock = Leases(records, name)
    try:
        yield lock
    finally:
        lock.release()


@contextmanager
def lasting_presence(records: str, name: str) -> Iterator[Leases]:
    """Held however slow the test is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "LEASE_S", 600.0)
        lock = Leases(records, name)
    try:
        assert lock.hold() == 1
        yield lock
    finally:
        lock.release()


@pytest.mark.parametrize("notices", ["hold", "absent"])
def test_a_lock_whose_connection_was_cut_is_taken_anew(records: str, notices: str) -> None:
    with closing_presence(records, "me") as lock:
        assert lock.hold() == 1
        cut_connections(records)
        if notices == "absent":
            assert lock.absent({"nobody"}) == set()
        assert lock.hold() == 2
        assert lock.absent({"nobody"}) == {"nobody"}


def test_of_many_who_take_over_at_once_one_does(records: str, other: Store) -> None:
    other.add(job("abcd2345"))
    other.start_waiting(lambda _slot: 1)
    stores = [Store(records, f"heir {number}") for number in range(6)]
    together = Barrier(len(stores))

    def take(store: Store) -> dict[str, int]:
        together.wait(DEADLINE_S)
        return store.take_over(of="other")

    with ThreadPoolExecutor(len(stores)) as pool:
        taken = list(pool.map(take, stores))
    assert sorted(map(len, taken)) == [0, 0, 0, 0, 0, 1]
    assert other.row("abcd2345").epoch == 2
    for store in stores:
        store.close()


def test_a_manager_that_is_silent_too_long_has_lost_its_lock(records: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel still answers TCP, as that of a frozen process does."""
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    with closing_presence(records, "frozen") as frozen:
        monkeypatch.undo()
        with closing_presence(records, "awake") as awake:
            assert (frozen.hold(), awake.hold()) == (1, 1)
            assert awake.absent({"frozen", "nobody"}) == {"nobody"}
            until(lambda: bool(awake.hold()) and awake.absent({"frozen"}) == {"frozen"})
            assert frozen.hold() == 2


def test_a_lock_is_held_once(records: str) -> None:
    with closing_presence(records, "same") as first, closing_presence(records, "same") as second:
        assert (first.hold(), second.hold(), first.hold()) == (1, 0, 1)
        first.release()
        until(lambda: second.hold() == 1)


@pytest.mark.slow
def test_a_manager_that_lost_its_lock_goes_on_under_a_new_epoch(tmp_path: Path, records: str, other: Store) -> None:
    gate, world = Gate("copy"), world_of(1)
    with manager(tmp_path, records, world, gate) as jobs:
        view = jobs.submit(request(via="live"))
        assert gate.reached.wait(DEADLINE_S)
        cut_connections(records)
        until(lambda: other.row(view.id).epoch == 2)
        gate.open.set()
        assert ended(jobs, view.id).state is JobState.DONE
    assert world.violations == []
    assert all(times == 1 for effect, times in world.effects.items() if "pivot" in effect)


@pytest.mark.slow
def test_a_job_that_nobody_walks_any_more_is_gone_on_with(
    tmp_path: Path, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a manager that woke up took its workflow, and then saw that the job is another's."""
    monkeypatch.setattr(failover, "IDLE_S", 0.5)
    gate = Gate("copy")
    with manager(tmp_path, records, world_of(1), gate) as jobs:
        view = jobs.submit(request(via="live"))
        assert gate.reached.wait(DEADLINE_S)
        jobs._orders[view.id].set(stop=True)
        gate.open.set()
        assert ended(jobs, view.id).state is JobState.DONE


def cut_connections(records: str) -> None:
    with psycopg.connect(records, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


@pytest.mark.slow
def test_a_job_of_another_machines_own_libvirt_is_left_to_that_machine(
    tmp_path: Path, records: str, other: Store
) -> None:
    theirs = [replace(planned(number), machine="elsewhere") for number in range(2)]
    other.add(theirs[0])
    other.start_waiting(lambda _slot: 1)
    other.add(theirs[1])
    with manager(tmp_path, records, world_of(3)) as jobs:
        assert ended(jobs, jobs.submit(request(2)).id).state is JobState.DONE
        assert other.row(theirs[0].id).manager == "other"
        assert [jobs.get(each.id).state for each in theirs] == [JobState.RUNNING, JobState.QUEUED]
    here = ManagerIdentity(tmp_path, tmp_path, records, "me", "machine")
    assert [here.reach(uri) for uri in ("qemu:///system", "qemu+tcp://host2/system", "host2")] == [
        "machine",
        None,
        None,
    ]
    assert ManagerIdentity.at(tmp_path).reach("qemu:///system") is None


# -- slots and orders


def test_slots_are_counted_over_all_managers(records: str) -> None:
    stores = [Store(records, f"manager {number}") for number in range(4)]
    for number in range(3 * HOST_SLOTS):
        stores[0].add(job(f"job{number:05}"))
    together = Barrier(len(stores))

    def start(store: Store) -> int:
        together.wait(DEADLINE_S)
        return sum(len(store.start_waiting(lambda _slot: HOST_SLOTS)) for _ in range(5))

    with ThreadPoolExecutor(len(stores)) as pool:
        assert sum(pool.map(start, stores)) == HOST_SLOTS
    assert stores[0].count({JobState.RUNNING}) == HOST_SLOTS
    for store in stores:
        store.close()


@pytest.mark.slow
def test_a_job_that_was_queued_elsewhere_is_started_here(tmp_path: Path, records: str, other: Store) -> None:
    other.add(queued := planned())
    with manager(tmp_path, records, world_of(1)) as jobs:
        assert ended(jobs, queued.id).state is JobState.DONE
    assert other.row(queued.id).epoch == 1


@pytest.mark.slow
def test_orders_that_were_given_elsewhere_reach_a_running_job(tmp_path: Path, records: str, other: Store) -> None:
    gate = Gate()
    with manager(tmp_path, records, world_of(1), gate) as jobs:
        view = jobs.submit(request(limit_bytes_s=1000))
        assert gate.reached.wait(DEADLINE_S)
        throttle = jobs._orders[view.id].throttle
        other.ask(view.id, limit_bytes_s=None, priority=0)
        until(lambda: throttle.limit_bytes_s is None and throttle.rank == 0)
        other.put_limit(SharedLimit(Scope.STORAGE, "memory", str(DESTINATION), 5_000_000))
        until(lambda: throttle.tightest_bytes_s == 5_000_000)
        other.ask(view.id, suspend_asked=True)
        until(lambda: jobs._orders[view.id].suspend)
        other.ask(view.id, suspend_asked=False)
        until(lambda: not jobs._orders[view.id].suspend)
        other.ask(view.id, cancel_asked=True)
        until(lambda: jobs._orders[view.id].cancel)
        gate.open.set()
        view = ended(jobs, view.id)
    assert (view.state, view.kind) == (JobState.UNDONE, "Cancelled")


@pytest.mark.slow
def test_a_watcher_at_another_manager_sees_how_far_a_job_is(tmp_path: Path, records: str, other: Store) -> None:
    theirs = FencingToken(under_way(other), 1)
    with lasting_presence(records, "other"), manager(tmp_path, records, world_of(1)) as jobs:
        version, _ = jobs.changed(theirs.job, 0, 0.0)
        other.put_progress(theirs, seen := Progress(now="copying", step=3, steps=9))
        while jobs.get(theirs.job).progress != seen:
            version, _ = jobs.changed(theirs.job, version, DEADLINE_S)
        other.advance(theirs, JobState.STUCK, "help")
        while jobs.get(theirs.job).state is not JobState.STUCK:
            version, _ = jobs.changed(theirs.job, version, DEADLINE_S)


# -- the database is away


@pytest.mark.slow
def test_while_the_database_is_away_requests_say_so_and_jobs_wait(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "manager"
    folder.mkdir()
    gate, world = Gate("rewrite_snapshots"), world_of(1)
    with cluster(tmp_path) as server, manager(folder, server.database("vmferry"), world, gate) as jobs:
        view = jobs.submit(request(via="live"))
        assert gate.reached.wait(DEADLINE_S)
        server.stop()
        gate.open.set()
        with pytest.raises(StoreAway, match="see that the database runs"):
            jobs.get(view.id)
        assert jobs.in_flight() == 1
        server.start()
        until(lambda: not jobs.in_flight())
        assert jobs.get(view.id).state is JobState.DONE
        assert ended(jobs, jobs.submit(request(path=Path("/fast/vms"))).id).state is JobState.DONE
    assert world.violations == []


# -- slots, over machines


def test_a_host_with_a_name_has_its_slots_once_for_all_machines(records: str, other: Store) -> None:
    local = ("host qemu:///system", "storage 5 of qemu:///system")
    theirs = replace(job("abcd2345", (*local, "host far", "storage 5 of far")), machine="elsewhere")
    other.add(theirs)
    assert other.start_waiting(lambda _: 1) == [theirs.id]
    with closing(Store(records, "me", "here")) as mine:
        for id, slots in (("own12345", local), ("host2345", ("host far",)), ("disk2345", ("storage 5 of far",))):
            mine.add(replace(job(id, slots), machine="here"))
        assert mine.start_waiting(lambda _: 1) == ["own12345"]
        assert mine.start_waiting(lambda _: 2) == ["host2345", "disk2345"]


def test_a_job_from_or_to_a_machines_own_libvirt_is_tied_to_that_machine() -> None:
    here = ManagerIdentity(Path("/a"), Path("/a"), "postgresql:///x", "me", "here")
    assert here.reach("qemu:///system", "host1") == "here"
    assert here.reach("host1", "qemu:///system") == "here"
    assert here.reach("host1", "qemu+tls://host2/system") is None
    assert ManagerIdentity.at(Path("/a")).reach("qemu:///system") is None


# -- notices are told once


@pytest.fixture
def deliveries(records: str) -> Iterator[tuple[NoticeStore, NoticeStore]]:
    """Two managers' views of the notices, of which there is one."""
    with closing(NoticeStore(records, "one")) as one, closing(NoticeStore(records, "two")) as two:
        one.set_receivers(Receivers(command="true"))
        one.add_test()
        yield one, two


def test_a_notice_that_one_manager_tells_is_left_to_it(deliveries: tuple[NoticeStore, NoticeStore]) -> None:
    one, two = deliveries
    [seen] = two.waiting()
    taken = one.take(seen.number)
    assert taken is not None
    assert (two.waiting(), two.take(seen.number)) == ([], None)
    assert one.take(seen.number) is not None  # its next process, after a crash
    assert two.count_waiting() == 1
    one.tried(taken, NoticeState.WAITING, "no answer", again_s=3600)
    assert two.waiting() == []
    one.tried(taken, NoticeState.WAITING, "no answer")
    [again] = two.waiting()
    assert again.tries == 1
    assert two.take(again.number) is not None


def test_a_manager_that_was_frozen_while_it_told_changes_nothing_afterwards(
    deliveries: tuple[NoticeStore, NoticeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = deliveries
    monkeypatch.setattr(notices, "LEASE_S", -1.0)
    [seen] = one.waiting()
    frozen, heir = one.take(seen.number), two.take(seen.number)
    assert frozen is not None
    assert heir is not None
    one.tried(frozen, NoticeState.GIVEN_UP, "no answer")
    assert [found.number for found in two.waiting()] == [seen.number]
    two.tried(heir, NoticeState.DELIVERED)
    one.tried(frozen, NoticeState.WAITING, "no answer")
    assert (two.waiting(), two.count_waiting()) == ([], 0)


def test_couriers_of_two_managers_tell_each_event_once(tmp_path: Path, records: str) -> None:
    told, script = tmp_path / "told", tmp_path / "tell"
    script.write_text(f'#!/bin/sh\necho "$VMFERRY_EVENT_ID $VMFERRY_STATE $VMFERRY_RUNTIME" >> {told}\n')
    script.chmod(0o755)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    identities = [ManagerIdentity.among(folder, folder, records) for folder in folders]
    deliveries = [Delivery(identity) for identity in identities]
    with closing(NoticeStore(records)) as store:
        store.set_receivers(Receivers(command=str(script)))
        wanted = sorted(store.add_test() for _ in range(10))
        for delivery in deliveries:
            delivery.start()
        try:
            until(lambda: store.count_waiting() == 0)
        finally:
            for delivery in deliveries:
                delivery.close()
    lines = [line.split() for line in told.read_text().splitlines()]
    assert sorted(event for event, _, _ in lines) == wanted
    assert {(state, runtime) for _, state, runtime in lines} <= {
        (records, str(identity.folder)) for identity in identities
    }


# -- hosts are those of all


def test_a_host_that_one_manager_added_is_known_and_revoked_at_all(records: str) -> None:
    with closing(FleetStore(records)) as one, closing(FleetStore(records)) as two:
        one.add("host1", "10.0.0.1:8750", ["host1.lan"])
        one.issued(7, "agent", "host1", datetime.now(UTC))
        with pytest.raises(HostKnown):
            two.add("host1", "10.0.0.2:8750", [])
        here = StorageRow("host1", "san", "/san", "uuid", "gold")
        one.add_storage(here)
        two.add_storage(here)
        with pytest.raises(StorageKnown):
            two.add_storage(replace(here, path="/other"))
        two.revoke("host1")
        assert set(one.revoked()) == {7}
        assert [host.revoked for host in one.hosts()] == [True]


# -- transfers stay with their manager


def test_a_transfer_is_seen_everywhere_and_steered_where_it_is_carried(records: str) -> None:
    wanted = TransferRequest("/a", "/b", "memory")
    with (
        closing(TransferStore(records, "one", "here")) as one,
        closing(TransferStore(records, "two", "elsewhere")) as two,
    ):
        one.add("abcd2345", wanted, ("host memory",))
        two.add("efgh2345", wanted, ("host memory",))  # the same path, of another machine
        assert [row.id for row in two.all()] == ["efgh2345", "abcd2345"]
        assert [row.id for row in two.rows()] == ["efgh2345"]
        two.take_over()
        with pytest.raises(TransferElsewhere, match="manager one"):
            two.mine("abcd2345")
        assert one.mine("abcd2345").state is TransferState.QUEUED


# -- the command


@pytest.fixture
def shared_site(site: Site, records: str) -> Site:
    """The real command and worker, whose records lie in PostgreSQL."""
    site.env |= {"VMFERRY_STATE": f"{records}&password=secret", "VMFERRY_RUNTIME": str(site.state)}
    return site


@pytest.mark.slow
def test_commands_work_on_a_database_as_on_a_folder(shared_site: Site, records: str) -> None:
    site = shared_site
    out = site.run("migrate-storage", NAME, "--path", "/san2").stdout
    assert "was moved" in out
    assert site.lies_on() == {"san2"}
    assert not list(site.state.glob("*.db"))
    assert b"secret" not in Path(f"/proc/{site.worker()}/cmdline").read_bytes()
    assert "secret" not in site.log()
    with pytest.raises(WorkerRunning):
        Jobs(ManagerIdentity.among(site.state, site.state, records), HeldHosts(World(), opened())).start()


@pytest.mark.slow
def test_a_job_goes_on_at_another_manager_while_its_watcher_there_looks_on(shared_site: Site, tmp_path: Path) -> None:
    first = shared_site
    hold = first.hold("copy")
    job_id = first.submit()
    first.until_held("copy")
    pid = first.worker()
    first.env["VMFERRY_RUNTIME"] = str(first.folder / "second")
    watcher = first.start("job", "watch", job_id, "--json")
    until(lambda: (first.folder / "second" / "worker.pid").exists())
    os.kill(pid, signal.SIGKILL)
    hold.unlink()
    events = [json.loads(line) for line in first.ended(watcher).stdout.splitlines()]
    assert events[-1]["state"] == "done"
    first.state = first.folder / "second"
    assert first.worker() != pid
    assert first.json("job", "show", job_id)["manager"] == (first.state / "manager").read_text().strip()
    assert first.lies_on() == {"san2"}


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_told(site: Site) -> None:
    site.env |= {"VMFERRY_STATE": "postgresql://x@127.0.0.1:1/x", "VMFERRY_RUNTIME": str(site.state)}
    ended_ = site.run("jobs", code=1)
    assert "see that the database runs" in ended_.stderr
