"""The durable record of all jobs. Every method is one transaction, durable when it returns.

What is done in a job's name takes its token and raises Superseded once a newer epoch exists.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog

from vmferry.errors import AmbiguousJob, NoSuchJob, Superseded, VmBusy
from vmferry.model import (
    ACTIVE,
    ALLOWED,
    FINAL,
    JobState,
    Lost,
    NoticeView,
    Phase,
    Receipt,
    Scope,
    SharedLimit,
    StepRecord,
    Token,
    Window,
)
from vmferry.store import notices, tables
from vmferry.store.codec import dump, dump_all, load, load_all
from vmferry.store.records import NewJob, Row
from vmferry.store.tables import calendars, facts, jobs, journal, limits, phases, receipts

log = structlog.get_logger()

Fact = str | int | float | bool | None | list[str]
LIMIT_KEY = ("scope", "connect", "place")
Judge = Callable[[Row, tuple[StepRecord, ...], Mapping[str, Fact]], None]
HOLDS_SLOTS = ACTIVE - {JobState.QUEUED}


def now() -> str:
    """ISO 8601, UTC, always as long, so that texts sort as times."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Store:
    """Jobs in a database."""

    def __init__(self, url: str) -> None:
        self._engine = tables.connect(url)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._engine.connect().execution_options(**{tables.READING: True}) as connection:
            yield connection

    # -- jobs

    def add(self, job: NewJob) -> Row:
        """Queue a job. Raises VmBusy, also when two requests come at the same instant."""
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(jobs).values(**job.columns()))
        except sa.exc.IntegrityError:
            self.refuse_busy(job.plan.uuid)
            raise
        log.info("job queued", job=job.id, vm=job.plan.vm, technology=job.plan.technology.value)
        return self.row(job.id)

    def refuse_busy(self, uuid: str) -> None:
        """Raises VmBusy if a job of that VM is active."""
        with self._reading() as connection:
            found = connection.execute(sa.select(jobs).where(jobs.c.active_vm == uuid)).mappings().first()
        if found is not None:
            raise VmBusy(vm=found["vm"], job=found["id"])

    def row(self, job: str) -> Row:
        """The job of exactly that id. Raises NoSuchJob."""
        with self._reading() as connection:
            return _row(connection, job)

    def find(self, prefix: str) -> str:
        """The id that begins so. Raises NoSuchJob, AmbiguousJob."""
        query = sa.select(jobs.c.id).where(jobs.c.id.startswith(prefix, autoescape=True)).order_by(jobs.c.id)
        with self._reading() as connection:
            found: list[str] = list(connection.execute(query).scalars())
        if not prefix or not found:
            raise NoSuchJob(job=prefix)
        if len(found) > 1:
            raise AmbiguousJob(job=prefix, candidates=", ".join(found))
        return found[0]

    def rows(self, states: Collection[JobState] = frozenset(JobState)) -> list[Row]:
        """The jobs in these states, newest first."""
        query = sa.select(jobs).where(jobs.c.state.in_([s.value for s in states]))
        with self._reading() as connection:
            return [Row.of(found) for found in connection.execute(query.order_by(jobs.c.number.desc())).mappings()]

    def count(self, states: Collection[JobState]) -> int:
        query = sa.select(sa.func.count()).where(jobs.c.state.in_([s.value for s in states]))
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    # -- who acts

    def take_over(self) -> dict[str, int]:
        """Raise the epoch of all active jobs: from now on only the caller acts for them. Returns the epochs."""
        active = jobs.c.state.in_([s.value for s in ACTIVE])
        with self._engine.begin() as connection:
            connection.execute(sa.update(jobs).where(active).values(epoch=jobs.c.epoch + 1))
            found = connection.execute(sa.select(jobs.c.id, jobs.c.epoch).where(active))
            return {job: epoch for job, epoch in found}

    def start_waiting(self, limit: Callable[[str], int]) -> list[str]:
        """Start the queued jobs whose slots are all free, by priority, then first come first served. Returns their ids.

        A job takes all its slots or none. One that has to wait keeps its places in all its lines: no later
        job that needs one of them passes it. Where `limit` is 0 a place is closed, perhaps for hours: who waits
        for it keeps no places.
        """
        started = []
        with self._engine.begin() as connection:
            held = _slots_held(connection)
            waited: set[str] = set()
            for job, slots in _waiting(connection):
                if any(limit(slot) < 1 for slot in slots):
                    continue
                if waited.isdisjoint(slots) and all(held[slot] < limit(slot) for slot in slots):
                    held.update(slots)
                    _change(connection, job, JobState.RUNNING, "", "")
                    started.append(job)
                else:
                    waited.update(slots)
        return started

    # -- changes that a person asks for

    def change(
        self, job: str, to: JobState, why: str = "", kind: str = "", only_from: Collection[JobState] = ACTIVE
    ) -> bool:
        """Change a job's state if it is in one of these; False, and nothing done, if it is not."""
        with self._engine.begin() as connection:
            if _row(connection, job).state not in only_from:
                return False
            _change(connection, job, to, why, kind)
            return True

    def ask(self, job: str, **columns: object) -> Row:
        """Write down what a person wants of an active job: cancel_asked, retry_asked, suspend_asked, limits."""
        with self._engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == job).values(**columns))
            return _row(connection, job)

    def declare_lost(self, job: str, lost: Lost, judge: Judge) -> int:
        """Write down that one of its hosts is lost, and let nobody act as before. Returns the new epoch.

        `judge` raises what forbids it, for the job as it is in that instant.
        """
        with self._engine.begin() as connection:
            row = _row(connection, job)
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
        self, token: Token, to: JobState, why: str = "", kind: str = "", receipt: Receipt | None = None
    ) -> None:
        """Change the state, with the receipt in the same transaction; being there already is fine."""
        with self._acting(token) as connection:
            if receipt is not None:
                _replace(connection, receipts, {"job": token.job}, receipt=dump(receipt))
            _change(connection, token.job, to, why, kind)

    def put_fact(self, token: Token, name: str, value: Fact) -> None:
        with self._acting(token) as connection:
            _replace(connection, facts, {"job": token.job, "name": name}, value=json.dumps(value))

    def put_phase(self, token: Token, phase: Phase) -> None:
        """One of the same name is replaced."""
        with self._acting(token) as connection:
            key = {"job": token.job, "name": phase.name}
            _replace(connection, phases, key, seconds=phase.seconds, bytes=phase.bytes)

    def begun(self, token: Token, record: StepRecord) -> None:
        with self._acting(token) as connection:
            columns = {name: getattr(record, name) for name in StepRecord.__slots__}
            connection.execute(sa.insert(journal).values(job=token.job, **columns))

    def ended(self, token: Token, act: str, number: int, *, ok: bool, sentence: str) -> None:
        """Close the newest line of that act."""
        mine = (journal.c.job == token.job) & (journal.c.act == act) & (journal.c.number == number)
        newest = sa.select(sa.func.max(journal.c.seq)).where(mine).scalar_subquery()
        with self._acting(token) as connection:
            connection.execute(
                sa.update(journal).where(journal.c.seq == newest).values(ended=now(), ok=ok, sentence=sentence)
            )

    # -- limits that jobs share

    def put_limit(self, limit: SharedLimit) -> None:
        key = {"scope": limit.scope.value, "connect": limit.connect, "place": limit.place}
        with self._engine.begin() as connection:
            _replace(connection, limits, key, limit_bytes_s=limit.limit_bytes_s)
            _replace(connection, calendars, key, during=dump_all(limit.during))

    def limits(self) -> tuple[SharedLimit, ...]:
        joined = limits.outerjoin(calendars, sa.and_(*(limits.c[n] == calendars.c[n] for n in LIMIT_KEY)))
        query = sa.select(limits, calendars.c.during).select_from(joined)
        with self._reading() as connection:
            found = connection.execute(query.order_by(limits.c.scope, limits.c.connect, limits.c.place)).mappings()
            return tuple(_limit(row) for row in found)

    @contextmanager
    def _acting(self, token: Token) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
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
        """What somebody was or will be told of it, oldest first."""
        with self._reading() as connection:
            return notices.of_subject(connection, job)

    def receipt(self, job: str) -> Receipt | None:
        with self._reading() as connection:
            text = connection.execute(sa.select(receipts.c.receipt).where(receipts.c.job == job)).scalar_one_or_none()
        return load(Receipt, text) if text is not None else None


def _limit(found: sa.RowMapping) -> SharedLimit:
    during = load_all(Window, found["during"] or "[]")
    return SharedLimit(Scope(found["scope"]), found["connect"], found["place"], found["limit_bytes_s"], during)


def _row(connection: sa.Connection, job: str) -> Row:
    found = connection.execute(sa.select(jobs).where(jobs.c.id == job)).mappings().first()
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


def _change(connection: sa.Connection, job: str, to: JobState, why: str, kind: str) -> None:
    """The one place where a job's state changes: checks that it may, records it, logs it."""
    row = _row(connection, job)
    if row.state is to and to is not JobState.STUCK and (to is not JobState.PAUSED or why == row.sentence):
        return
    if row.state is not to and (row.state, to) not in ALLOWED:
        raise ValueError(f"job {job} cannot go from {row.state.value} to {to.value}")
    columns: dict[str, Any] = {"state": to.value, "sentence": why, "kind": kind or row.kind}
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


def _slots_held(connection: sa.Connection) -> Counter[str]:
    query = sa.select(jobs.c.slots).where(jobs.c.state.in_([s.value for s in HOLDS_SLOTS]))
    held: Counter[str] = Counter()
    for slots in connection.execute(query).scalars():
        held.update(json.loads(slots))
    return held


def _waiting(connection: sa.Connection) -> list[tuple[str, list[str]]]:
    query = sa.select(jobs.c.id, jobs.c.slots).where(jobs.c.state == JobState.QUEUED.value)
    rows = connection.execute(query.order_by(jobs.c.priority, jobs.c.number).with_for_update())
    return [(job, json.loads(slots)) for job, slots in rows]


def _replace(connection: sa.Connection, table: sa.Table, key: Mapping[str, str], **columns: object) -> None:
    same = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if connection.execute(sa.update(table).where(same).values(**columns)).rowcount == 0:
        connection.execute(sa.insert(table).values(**key, **columns))
