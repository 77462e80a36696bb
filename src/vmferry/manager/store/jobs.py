"""The durable record of all jobs. Every method is one transaction, durable when it returns.

What is done in a job's name takes its token and raises Superseded once a newer epoch exists.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy import or_

from vmferry.errors import AmbiguousJob, NoSuchJob, Superseded, VmBusy
from vmferry.manager.store import notices
from vmferry.manager.store.codec import dump, dump_all, load
from vmferry.manager.store.database import Database
from vmferry.manager.store.leases import is_gone
from vmferry.manager.store.limits import shared_limits
from vmferry.manager.store.records import JobHeartbeat, NewJob, Row
from vmferry.manager.store.tables import calendars, facts, jobs, journal, limits, phases, receipts
from vmferry.migration.facts import Fact
from vmferry.model import (
    ACTIVE,
    ALLOWED,
    FINAL,
    FencingToken,
    JobState,
    Lost,
    NoticeView,
    Phase,
    Plan,
    Progress,
    Receipt,
    SharedLimit,
    StepRecord,
)
from vmferry.process.state import ALONE, is_local

log = structlog.get_logger()
Judge = Callable[[Row, tuple[StepRecord, ...], Mapping[str, Fact]], None]
HOLDS_SLOTS = ACTIVE - {JobState.QUEUED}
SETTLED = timedelta(minutes=1)


def now() -> str:
    """Return the present time in ISO 8601, UTC, always of the same length, so that texts sort as times."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Store:
    """Jobs in a database, seen by one manager. Every method may raise StoreAway."""

    def __init__(self, url: str, manager: str = ALONE, machine: str | None = None) -> None:
        self._database = Database(url)
        self._manager = manager
        self._here = or_(jobs.c.machine.is_(None), jobs.c.machine == machine)
        """The jobs that this machine's managers can act for."""
        self._reading = self._database.reading
        self._writing = self._database.writing

    def close(self) -> None:
        self._database.close()

    # -- jobs

    def add(self, job: NewJob) -> Row:
        """Queue a job. Raises VmBusy, also when two requests come at the same instant."""
        try:
            with self._writing() as connection:
                connection.execute(sa.insert(jobs).values(**job.columns()))
        except sa.exc.IntegrityError:
            self.refuse_busy(job.plan.uuid)
            raise
        log.info("job queued", job=job.id, vm=job.plan.vm, technology=job.plan.technology.value)
        return self.row(job.id)

    def refuse_busy(self, uuid: str) -> None:
        """Raise VmBusy if a job of that VM is active."""
        with self._reading() as connection:
            found = connection.execute(sa.select(jobs).where(jobs.c.active_vm == uuid)).mappings().first()
        if found is not None:
            raise VmBusy(vm=found["vm"], job=found["id"])

    def row(self, job: str) -> Row:
        """Return the job of exactly that id. Raises NoSuchJob."""
        with self._reading() as connection:
            return _row(connection, job)

    def find(self, prefix: str) -> str:
        """Return the id that begins so. Raises NoSuchJob, AmbiguousJob."""
        query = sa.select(jobs.c.id).where(jobs.c.id.startswith(prefix, autoescape=True)).order_by(jobs.c.id)
        with self._reading() as connection:
            found: list[str] = list(connection.execute(query).scalars())
        if not prefix or not found:
            raise NoSuchJob(job=prefix)
        if len(found) > 1:
            raise AmbiguousJob(job=prefix, candidates=", ".join(found))
        return found[0]

    def rows(self, states: Collection[JobState] = frozenset(JobState)) -> list[Row]:
        """Return the jobs in these states, newest first."""
        query = sa.select(jobs).where(jobs.c.state.in_(_values(states)))
        with self._reading() as connection:
            return [Row.of(found) for found in connection.execute(query.order_by(jobs.c.number.desc())).mappings()]

    def count(self, states: Collection[JobState]) -> int:
        query = sa.select(sa.func.count()).where(jobs.c.state.in_(_values(states)))
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    # -- who acts

    def take_over(self, of: str | None = None) -> dict[str, int]:
        """Raise the epoch of all active jobs: from now on only this manager acts for them. Returns the epochs, by job.

        `of`: only the jobs of that manager, and only if it is gone (or this one itself, back again). Of several
        managers that try at once one succeeds; the one that was gone cannot come back before this is recorded.
        """
        wanted = _ACTIVE if of is None else _ACTIVE & (jobs.c.manager == of) & self._here
        with self._writing() as connection:
            if of not in (None, self._manager) and not is_gone(connection, str(of)):
                return {}
            taken = sa.update(jobs).where(wanted).values(epoch=jobs.c.epoch + 1, manager=self._manager)
            return {job: epoch for job, epoch in connection.execute(taken.returning(jobs.c.id, jobs.c.epoch))}

    def mine(self) -> list[str]:
        """Return the jobs under way that this manager acts for, newest first."""
        query = sa.select(jobs.c.id).where(jobs.c.state.in_(_values(HOLDS_SLOTS)), jobs.c.manager == self._manager)
        with self._reading() as connection:
            return list(connection.execute(query.order_by(jobs.c.number.desc())).scalars())

    def over(self, among: Iterable[str]) -> list[str]:
        """Return those of the jobs that ended more than a minute ago."""
        ended = jobs.c.ended < (datetime.now(UTC) - SETTLED).isoformat(timespec="microseconds")
        with self._reading() as connection:
            return list(connection.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(list(among)), ended)).scalars())

    def others(self) -> set[str]:
        """Return the other managers whose jobs this one could take over."""
        theirs = _ACTIVE & (jobs.c.manager != self._manager) & self._here
        with self._reading() as connection:
            return set(connection.execute(sa.select(jobs.c.manager).where(theirs).distinct()).scalars())

    def pulses(self) -> list[JobHeartbeat]:
        """Return what may change in each active job while it runs."""
        columns = [jobs.c[name] for name in JobHeartbeat.__slots__]
        with self._reading() as connection:
            return [JobHeartbeat(*found) for found in connection.execute(sa.select(*columns).where(_ACTIVE))]

    def put_progress(self, token: FencingToken, progress: Progress) -> None:
        """Record a job's progress for people who watch at another manager; a superseded token writes nothing."""
        mine = (jobs.c.id == token.job) & (jobs.c.epoch == token.epoch)
        with self._writing() as connection:
            connection.execute(sa.update(jobs).where(mine).values(progress=dump(progress)))

    def start_waiting(self, limit: Callable[[str], int]) -> list[str]:
        """Start the queued jobs whose slots are all free, by priority, then first come first served. Returns their ids.

        A job takes all its slots or none. One that has to wait keeps its places in the lines for all its slots: no
        later job that needs one of them passes it. Where `limit` is 0 a place is closed, perhaps for hours: a job that
        waits for it keeps no places. Slots are counted over all managers; this one acts for what it starts.
        """
        started = []
        with self._writing() as connection:
            self._database.take_turn(connection)  # before the count: what others start meanwhile would be missing in it
            held = _slots_held(connection, self._here)
            waited: set[str] = set()
            for job, slots in _waiting(connection, self._here):
                if any(limit(slot) < 1 for slot in slots):
                    continue
                if waited.isdisjoint(slots) and all(held[slot] < limit(slot) for slot in slots):
                    held.update(slots)
                    _change(connection, job, JobState.RUNNING, "", "", manager=self._manager)
                    started.append(job)
                else:
                    waited.update(slots)
        return started

    # -- changes that a person asks for

    def change(
        self, job: str, to: JobState, why: str = "", kind: str = "", only_from: Collection[JobState] = ACTIVE
    ) -> bool:
        """Change a job's state if it is in one of `only_from`; False, and nothing done, if it is not."""
        with self._writing() as connection:
            if _locked(connection, job).state not in only_from:
                return False
            _change(connection, job, to, why, kind)
            return True

    def ask(self, job: str, **columns: object) -> Row:
        """Record what a person wants of an active job: cancel_asked, retry_asked, suspend_asked, limits."""
        with self._writing() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == job).values(**columns))
            return _row(connection, job)

    def declare_lost(self, job: str, lost: Lost, judge: Judge) -> int:
        """Record that one of a job's hosts is lost, and raise its epoch, which is returned.

        So nobody acts as before. `judge` raises what forbids it, for the job as it is in that instant.
        """
        with self._writing() as connection:
            row = _locked(connection, job)
            judge(row, _journal(connection, job), _facts(connection, job))
            columns: dict[str, object] = {"epoch": row.epoch + 1}
            if lost is Lost.SOURCE:
                columns["cancel_asked"] = False
            if row.state is JobState.STUCK:
                columns["retry_asked"] = True
            connection.execute(sa.update(jobs).where(jobs.c.id == job).values(**columns))
            _replace(connection, facts, {"job": job, "name": "lost"}, value=json.dumps(lost.value))
        log.warning("a host was declared lost", job=job, lost=lost.value, epoch=row.epoch + 1)
        return row.epoch + 1

    # -- changes in a job's name

    def advance(
        self, token: FencingToken, to: JobState, why: str = "", kind: str = "", receipt: Receipt | None = None
    ) -> None:
        """Change a job's state, with the receipt in the same transaction. Raises Superseded.

        Setting the present state again is allowed.
        """
        with self._acting(token) as connection:
            if receipt is not None:
                _replace(connection, receipts, {"job": token.job}, receipt=dump(receipt))
            _change(connection, token.job, to, why, kind)

    def put_fact(self, token: FencingToken, name: str, value: Fact) -> None:
        with self._acting(token) as connection:
            _replace(connection, facts, {"job": token.job, "name": name}, value=json.dumps(value))

    def put_phase(self, token: FencingToken, phase: Phase) -> None:
        """Record a finished phase of a job; one of the same name is replaced."""
        with self._acting(token) as connection:
            key = {"job": token.job, "name": phase.name}
            _replace(connection, phases, key, seconds=phase.seconds, bytes=phase.bytes)

    def begun(self, token: FencingToken, record: StepRecord) -> None:
        with self._acting(token) as connection:
            columns = {name: getattr(record, name) for name in StepRecord.__slots__}
            connection.execute(sa.insert(journal).values(job=token.job, **columns))

    def ended(self, token: FencingToken, act: str, number: int, *, ok: bool, sentence: str) -> None:
        """Close the newest journal line of that act of the step with that number."""
        mine = (journal.c.job == token.job) & (journal.c.act == act) & (journal.c.number == number)
        newest = sa.select(sa.func.max(journal.c.seq)).where(mine).scalar_subquery()
        with self._acting(token) as connection:
            connection.execute(
                sa.update(journal).where(journal.c.seq == newest).values(ended=now(), ok=ok, sentence=sentence)
            )

    # -- limits that jobs share

    def put_limit(self, limit: SharedLimit) -> None:
        self.edit_limit(limit, lambda _: limit)

    def edit_limit(self, none: SharedLimit, edit: Callable[[SharedLimit], SharedLimit]) -> SharedLimit:
        """Set a shared limit to what `edit` makes of the one before, or of `none`; no other change comes between."""
        key = {"scope": none.scope.value, "connect": none.connect, "place": none.place}
        with self._writing() as connection:
            self._database.take_turn(connection)
            same = [limits.c[name] == value for name, value in key.items()]
            limit = edit(next(iter(shared_limits(connection, *same)), none))
            _replace(connection, limits, key, limit_bytes_s=limit.limit_bytes_s)
            _replace(connection, calendars, key, during=dump_all(limit.during))
        return limit

    def limits(self) -> tuple[SharedLimit, ...]:
        with self._reading() as connection:
            return shared_limits(connection)

    @contextmanager
    def _acting(self, token: FencingToken) -> Iterator[sa.Connection]:
        with self._writing() as connection:
            found = sa.select(jobs.c.epoch).where(jobs.c.id == token.job).with_for_update()
            newest = connection.execute(found).scalar_one_or_none()
            if newest is None:
                raise NoSuchJob(job=token.job)
            if newest != token.epoch:
                raise Superseded(job=token.job, epoch=token.epoch, newest=newest)
            yield connection

    # -- what is known

    def facts(self, job: str) -> dict[str, Fact]:
        with self._reading() as connection:
            return _facts(connection, job)

    def journal(self, job: str) -> tuple[StepRecord, ...]:
        with self._reading() as connection:
            return _journal(connection, job)

    def phases(self, job: str) -> tuple[Phase, ...]:
        query = sa.select(phases).where(phases.c.job == job).order_by(phases.c.seq)
        with self._reading() as connection:
            return tuple(
                Phase(found["name"], found["seconds"], found["bytes"]) for found in connection.execute(query).mappings()
            )

    def notices(self, job: str) -> tuple[NoticeView, ...]:
        """Return the notices of a job, delivered or not, oldest first."""
        with self._reading() as connection:
            return notices.of_subject(connection, job)

    def receipt(self, job: str) -> Receipt | None:
        with self._reading() as connection:
            text = connection.execute(sa.select(receipts.c.receipt).where(receipts.c.job == job)).scalar_one_or_none()
        return load(Receipt, text) if text is not None else None

    def past(self, connect: str, most: int) -> list[tuple[Plan, Receipt]]:
        """Return the newest `most` finished moves of a host's VMs that no crash cut off, the last one first."""
        query = sa.select(jobs.c.plan, receipts.c.receipt).join(receipts, receipts.c.job == jobs.c.id)
        query = query.where(jobs.c.connect == connect, jobs.c.epoch == 1).order_by(jobs.c.number.desc()).limit(most)
        with self._reading() as connection:
            return [(load(Plan, plan), load(Receipt, receipt)) for plan, receipt in connection.execute(query)]


def _values(states: Collection[JobState]) -> list[str]:
    return [state.value for state in states]


_ACTIVE = jobs.c.state.in_(_values(ACTIVE))


def _row(connection: sa.Connection, job: str, *, lock: bool = False) -> Row:
    query = sa.select(jobs).where(jobs.c.id == job)
    found = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if found is None:
        raise NoSuchJob(job=job)
    return Row.of(found)


def _facts(connection: sa.Connection, job: str) -> dict[str, Fact]:
    query = sa.select(facts.c.name, facts.c.value).where(facts.c.job == job)
    return {name: json.loads(value) for name, value in connection.execute(query)}


def _journal(connection: sa.Connection, job: str) -> tuple[StepRecord, ...]:
    query = sa.select(journal).where(journal.c.job == job).order_by(journal.c.seq)
    return tuple(
        StepRecord(**{name: found[name] for name in StepRecord.__slots__})
        for found in connection.execute(query).mappings()
    )


def _locked(connection: sa.Connection, job: str) -> Row:
    """Return the job, which nobody else changes until the transaction ends."""
    return _row(connection, job, lock=True)


def _change(connection: sa.Connection, job: str, to: JobState, why: str, kind: str, **also: object) -> None:
    """The one place where a job's state changes: checks that it may, records it, logs it."""
    row = _locked(connection, job)
    if row.state is to and to is not JobState.STUCK and (to is not JobState.PAUSED or why == row.sentence):
        return
    if row.state is not to and (row.state, to) not in ALLOWED:
        raise ValueError(f"job {job} cannot go from {row.state.value} to {to.value}")
    columns: dict[str, Any] = {"state": to.value, "sentence": why, "kind": kind or row.kind, **also}
    if row.state is JobState.QUEUED and to is JobState.RUNNING:
        columns["started"] = now()
    if to in FINAL:
        columns |= {"active_vm": None, "ended": now()}
    if to is JobState.STUCK and row.state is not to:
        columns["before_stuck"] = row.state.value
    if row.state is JobState.STUCK and to is not row.state:
        columns |= {"before_stuck": None, "retry_asked": False, "kind": kind}
    connection.execute(sa.update(jobs).where(jobs.c.id == job).values(**columns))
    notices.job_changed(connection, row, to, why, columns["kind"])
    log.info("job changed", job=job, before=row.state.value, now=to.value, why=why)


def _slots_held(connection: sa.Connection, here: sa.ColumnElement[bool]) -> Counter[str]:
    """Count how many jobs hold each slot.

    Another machine's own libvirt and storages are others; a host that has a name is one for all.
    """
    query = sa.select(jobs.c.slots, here.label("here")).where(jobs.c.state.in_(_values(HOLDS_SLOTS)))
    held: Counter[str] = Counter()
    for slots, is_here in connection.execute(query):
        held.update(slot for slot in json.loads(slots) if is_here or not is_local(slot))
    return held


def _waiting(connection: sa.Connection, here: sa.ColumnElement[bool]) -> list[tuple[str, list[str]]]:
    query = sa.select(jobs.c.id, jobs.c.slots).where(jobs.c.state == JobState.QUEUED.value, here)
    rows = connection.execute(query.order_by(jobs.c.priority, jobs.c.number).with_for_update())
    return [(job, json.loads(slots)) for job, slots in rows]


def _replace(connection: sa.Connection, table: sa.Table, key: Mapping[str, str], **columns: object) -> None:
    same = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if connection.execute(sa.update(table).where(same).values(**columns)).rowcount == 0:
        connection.execute(sa.insert(table).values(**key, **columns))
