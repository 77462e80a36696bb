"""The store: one active job to a VM, allowed changes only, slots in order, and nothing from who was superseded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.support.records import job, some_plan

from vmferry.errors import AmbiguousJob, NoSuchJob, Superseded, VmBusy
from vmferry.manager.store import Store
from vmferry.manager.store.database import know_subseconds, make_engine
from vmferry.manager.store.jobs import now
from vmferry.model import (
    ALLOWED,
    DiskReceipt,
    FencingToken,
    JobState,
    Phase,
    Progress,
    Receipt,
    StepRecord,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'vmferry.db'}"
    found: str = request.getfixturevalue("records")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def test_what_is_put_in_comes_out(store: Store) -> None:
    new = job("abcd2345")
    row = store.add(new)
    assert (row.plan, row.request, row.slots, row.room) == (new.plan, new.request, new.slots, new.room)
    assert (row.state, row.epoch, row.cancel_asked) == (JobState.QUEUED, 1, False)


def test_a_second_active_job_of_a_vm_is_refused_by_the_database(store: Store) -> None:
    store.add(job("abcd2345", vm="one"))
    with pytest.raises(VmBusy, match="abcd2345"):
        store.add(job("efgh2345", vm="one"))
    assert store.change("abcd2345", JobState.FAILED)
    store.add(job("efgh2345", vm="one"))


@pytest.mark.parametrize("to", list(JobState))
def test_a_queued_job_changes_only_as_allowed(store: Store, to: JobState) -> None:
    store.add(job("abcd2345"))
    if to is JobState.QUEUED or (JobState.QUEUED, to) in ALLOWED:
        store.change("abcd2345", to)
        assert store.row("abcd2345").state is to
    else:
        with pytest.raises(ValueError, match="cannot go from queued"):
            store.change("abcd2345", to)
        assert store.row("abcd2345").state is JobState.QUEUED


def test_who_was_superseded_records_nothing(store: Store) -> None:
    store.add(job("abcd2345"))
    old = FencingToken("abcd2345", 1)
    store.put_fact(old, "rounds", 1)
    assert store.take_over() == {"abcd2345": 2}
    acts: tuple[Callable[[], None], ...] = (
        lambda: store.put_fact(old, "rounds", 2),
        lambda: store.put_phase(old, Phase("copy", 1.0)),
        lambda: store.advance(old, JobState.RUNNING),
        lambda: store.begun(old, StepRecord("do", 0, "Reserve", "", now())),
        lambda: store.ended(old, "do", 0, ok=True, sentence=""),
    )
    for act in acts:
        with pytest.raises(Superseded):
            act()
    assert store.facts("abcd2345") == {"rounds": 1}
    assert store.journal("abcd2345") == ()
    store.put_fact(FencingToken("abcd2345", 2), "rounds", 2)


def test_only_active_jobs_are_taken_over(store: Store) -> None:
    store.add(job("abcd2345"))
    store.change("abcd2345", JobState.FAILED)
    assert store.take_over() == {}


def test_ids_are_found_by_their_first_letters(store: Store) -> None:
    store.add(job("abcd2345"))
    store.add(job("abxy2345"))
    assert store.find("abc") == "abcd2345"
    assert store.find("abcd2345") == "abcd2345"
    with pytest.raises(AmbiguousJob, match="abcd2345, abxy2345"):
        store.find("ab")
    for strange in ("", "zz", "%", "a_"):
        with pytest.raises(NoSuchJob):
            store.find(strange)


def test_slots_are_taken_all_together_or_not_at_all(store: Store) -> None:
    store.add(job("first222", ("host a", "storage x")))
    store.add(job("second22", ("host a", "storage y")))
    store.add(job("third222", ("host b", "storage y")))
    store.add(job("fourth22", ("host b", "storage z")))
    assert store.start_waiting(lambda _slot: 1) == ["first222"]  # third waits behind second, fourth behind third
    assert store.start_waiting(lambda _slot: 1) == []
    store.advance(FencingToken("first222", 1), JobState.DONE)
    assert store.start_waiting(lambda _slot: 1) == ["second22"]


def test_a_job_of_a_higher_priority_starts_before_those_that_wait(store: Store) -> None:
    for name in ("first222", "second22", "third222"):
        store.add(job(name))
    store.ask("third222", priority=0)
    store.ask("first222", priority=3)
    assert store.start_waiting(lambda _slot: 1) == ["third222"]
    store.advance(FencingToken("third222", 1), JobState.DONE)
    assert store.start_waiting(lambda _slot: 1) == ["second22"]


def test_a_stuck_job_keeps_its_slots(store: Store) -> None:
    store.add(job("first222"))
    store.add(job("second22"))
    store.start_waiting(lambda _slot: 1)
    store.advance(FencingToken("first222", 1), JobState.STUCK, "help")
    assert store.start_waiting(lambda _slot: 1) == []
    assert store.row("first222").before_stuck is JobState.RUNNING


def test_a_retry_stays_asked_until_the_stuck_job_goes_on(store: Store) -> None:
    store.add(job("abcd2345"))
    store.start_waiting(lambda _slot: 1)
    token = FencingToken("abcd2345", 1)
    store.advance(token, JobState.STUCK, "help", "HostRefused")
    store.ask("abcd2345", retry_asked=True)
    store.advance(token, JobState.STUCK, "help again")  # replayed after a crash
    assert store.row("abcd2345").retry_asked
    store.advance(token, JobState.RUNNING)
    row = store.row("abcd2345")
    assert (row.retry_asked, row.before_stuck, row.sentence, row.kind) == (False, None, "", "")


def test_a_phase_of_the_same_name_replaces_the_first(store: Store) -> None:
    store.add(job("abcd2345"))
    token = FencingToken("abcd2345", 1)
    store.put_phase(token, Phase("copy base", 1.0, 5))
    store.put_phase(token, Phase("merge", 2.0))
    store.put_phase(token, Phase("copy base", 3.0, 7))
    assert store.phases("abcd2345") == (Phase("copy base", 3.0, 7), Phase("merge", 2.0))


def test_a_receipt_comes_with_the_state(store: Store) -> None:
    store.add(job("abcd2345"))
    store.start_waiting(lambda _slot: 1)
    disk = DiskReceipt("vda", "/a", "/b", "raw", 1, 1, "hash")
    receipt = Receipt("abcd2345", "guest", "live", (disk,), (Phase("merge", 2.0),), 0.1, 0.2, True, 1, now())
    store.advance(FencingToken("abcd2345", 1), JobState.DONE, receipt=receipt)
    assert store.receipt("abcd2345") == receipt
    assert store.row("abcd2345").ended
    assert store.receipt("nothing2") is None


def test_past_moves_are_the_newest_that_no_crash_cut_off(store: Store) -> None:
    receipts = {}
    for id in ("first222", "crashed2", "third222"):
        store.add(job(id))
        store.start_waiting(lambda _slot: 1)
        token = FencingToken(id, store.take_over()[id] if id == "crashed2" else 1)
        receipts[id] = Receipt(id, "guest", "live", (), (), 0.1, 0.2, True, 1, now())
        store.advance(token, JobState.DONE, receipt=receipts[id])
    connect = some_plan().connect
    assert [receipt for _, receipt in store.past(connect, 9)] == [receipts["third222"], receipts["first222"]]
    assert [receipt for _, receipt in store.past(connect, 1)] == [receipts["third222"]]
    assert store.past("elsewhere", 9) == []


def test_the_journal_closes_the_newest_line_of_an_act(store: Store) -> None:
    store.add(job("abcd2345"))
    token = FencingToken("abcd2345", 1)
    for _ in range(2):  # the first was cut off
        store.begun(token, StepRecord("do", 0, "Reserve", "reserving", now()))
    store.ended(token, "do", 0, ok=False, sentence="no room")
    first, second = store.journal("abcd2345")
    assert (first.ended, first.ok) == (None, None)
    assert (second.ok, second.sentence) == (False, "no room")


def test_all_of_it_survives_reopening(url: str) -> None:
    first = Store(url)
    first.add(job("abcd2345"))
    second = Store(url)
    assert second.row("abcd2345") == first.row("abcd2345")
    first.close()
    second.close()


def test_what_another_manager_may_show_of_a_job_is_written_by_who_acts_for_it(store: Store) -> None:
    store.add(job("abcd2345"))
    assert store.start_waiting(lambda _slot: 1) == store.mine() == ["abcd2345"]
    store.put_progress(FencingToken("abcd2345", 1), Progress(now="copying", step=2))
    store.take_over()
    store.put_progress(FencingToken("abcd2345", 1), Progress(now="late"))
    assert store.row("abcd2345").progress == Progress(now="copying", step=2)
    [pulse] = store.pulses()
    assert (pulse.id, pulse.manager, pulse.epoch) == ("abcd2345", "worker", 2)


def test_an_old_sqlite_knows_parts_of_a_second_as_the_engine_asks_for_them() -> None:
    know_subseconds()
    know_subseconds()
    with make_engine("sqlite://").connect() as connection:
        asked = connection.execute(text("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)")).scalar_one()
    assert abs(asked / 1000 - time.time()) < 60
