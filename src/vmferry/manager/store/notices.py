"""Notices of events: written in the transaction of the change that they tell of, delivered later.

So a kill between the two loses nothing, and no change is told of that did not happen.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from vmferry.manager.store import tables
from vmferry.manager.store.codec import dump, load
from vmferry.manager.store.database import FEW, Database
from vmferry.manager.store.records import Row
from vmferry.manager.store.tables import notices, receivers
from vmferry.model import NOBODY, Channel, JobState, NoticeState, NoticeView, Receipt, Receivers
from vmferry.model.notices import told_as
from vmferry.model.transfers import TransferState
from vmferry.process.state import ALONE

JOB_EVENTS = frozenset({JobState.DONE, JobState.UNDONE, JobState.FAILED, JobState.STUCK, JobState.PAUSED})
TRANSFER_EVENTS = frozenset(
    {TransferState.TRANSFERRED, TransferState.ERROR, TransferState.ACKNOWLEDGED, TransferState.CANCELLED}
)
TEST = "test"
KEPT = timedelta(days=30)
"""So long it can be looked up how a delivery ended."""
LEASE_S = 120.0
"""Longer than any try: a manager that has not ended one by then is gone, or frozen."""
_WAITS = notices.c.state == NoticeState.WAITING.value


@dataclass(frozen=True, slots=True)
class Notice:
    """An event on its way to one receiver."""

    number: int
    event_id: str
    event: str
    about: str
    subject: str
    body: str
    """JSON; what the receiver gets."""
    way: Channel
    receiver: str
    secret: str | None
    created: str
    state: NoticeState
    tries: int
    sentence: str

    @staticmethod
    def of(found: sa.RowMapping) -> Notice:
        given: dict[str, Any] = {name: found[name] for name in Notice.__slots__}
        return Notice(**given | {"way": Channel(found["way"]), "state": NoticeState(found["state"])})

    @property
    def to(self) -> str:
        """The receiver's name, as others may read it."""
        return told_as(self.way, self.receiver)

    def view(self) -> NoticeView:
        return NoticeView(
            event_id=self.event_id,
            event=self.event,
            about=self.about,
            subject=self.subject,
            to=self.to,
            state=self.state,
            created=self.created,
            tries=self.tries,
            sentence=self.sentence,
        )


def job_changed(connection: sa.Connection, row: Row, to: JobState, why: str, kind: str) -> None:
    """Write notices of a job's change of state; `row` is the job before it.

    A stuck job that is still stuck for the same reason is no news.
    """
    if to not in JOB_EVENTS or (row.state is to and row.sentence == why):
        return
    about = {
        "job": row.id,
        "vm": row.plan.vm,
        "technology": row.plan.technology.value,
        "state": to.value,
        "sentence": why,
        "kind": kind,
        "receipt": _summary(connection, row.id) if to is JobState.DONE else None,
    }
    _tell(connection, to.value, "job", row.id, about, row.request.notify)


def transfer_changed(
    connection: sa.Connection, id: str, to: TransferState, about: Mapping[str, object], own: Receivers
) -> None:
    """Write notices of a transfer's change of state."""
    if to in TRANSFER_EVENTS:
        _tell(connection, to.value, "transfer", id, {"transfer": id, "state": to.value, **about}, own)


def of_subject(connection: sa.Connection, subject: str) -> tuple[NoticeView, ...]:
    """Return all notices of one job or transfer, oldest first."""
    query = sa.select(notices).where(notices.c.subject == subject).order_by(notices.c.number)
    return tuple(Notice.of(found).view() for found in connection.execute(query).mappings())


class NoticeStore:
    """Notices in a database. Every method is one transaction, durable when it returns."""

    def __init__(self, url: str, manager: str = ALONE) -> None:
        self._database = Database(url, connections=FEW)
        self._reading = self._database.reading
        self._writing = self._database.writing
        self._manager = manager
        self._free = notices.c.manager.is_(None) | (notices.c.manager == manager)
        """What no other manager has tried: its own are taken at once, also by the next process of that name."""

    def close(self) -> None:
        self._database.close()

    def receivers(self) -> Receivers:
        """Return the receivers of all events in this database."""
        with self._reading() as connection:
            return _everywhere(connection)

    def set_receivers(self, to: Receivers) -> None:
        with self._writing() as connection:
            self._database.take_turn(connection)
            connection.execute(sa.delete(receivers))
            connection.execute(sa.insert(receivers).values(number=1, receivers=dump(to)))

    def add_test(self) -> str:
        """Write a test notice to the state folder's receivers. Returns the event's id."""
        sentence = "this is a test: nothing has happened"
        with self._writing() as connection:
            return _tell(connection, TEST, TEST, "", {"sentence": sentence}, NOBODY)

    def waiting(self) -> list[Notice]:
        """Return the notices that are not delivered yet and not left to another manager, oldest first."""
        query = sa.select(notices).where(_WAITS, self._free | (notices.c.not_before <= _now()))
        with self._reading() as connection:
            return [Notice.of(found) for found in connection.execute(query.order_by(notices.c.number)).mappings()]

    def take(self, number: int) -> Notice | None:
        """Take a notice: for LEASE_S only this manager may deliver it. None if another has it, or it waits no more."""
        mine = (notices.c.number == number) & _WAITS & (self._free | (notices.c.not_before <= _now()))
        until = {"manager": self._manager, "not_before": _now(LEASE_S)}
        with self._writing() as connection:
            taken = connection.execute(sa.update(notices).where(mine).values(**until).returning(*notices.c))
            found = taken.mappings().first()
        return Notice.of(found) if found is not None else None

    def count_waiting(self) -> int:
        """Count the waiting notices, also those left to another manager: somebody must be there to take them over."""
        query = sa.select(sa.func.count()).where(_WAITS)
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    def last(self, count: int) -> list[NoticeView]:
        """Return the newest notices, newest first."""
        query = sa.select(notices).order_by(notices.c.number.desc()).limit(count)
        with self._reading() as connection:
            return [Notice.of(found).view() for found in connection.execute(query).mappings()]

    def of_event(self, event_id: str) -> list[NoticeView]:
        query = sa.select(notices).where(notices.c.event_id == event_id).order_by(notices.c.number)
        with self._reading() as connection:
            return [Notice.of(found).view() for found in connection.execute(query).mappings()]

    def tried(self, notice: Notice, state: NoticeState, sentence: str = "", again_s: float = 0.0) -> None:
        """Record how a try has ended, unless another manager has the notice now.

        Other managers leave the notice alone for `again_s` seconds after that.
        """
        columns: dict[str, object] = {"state": state.value, "tries": notice.tries + 1, "sentence": sentence}
        columns["not_before"] = _now(again_s)
        if state is not NoticeState.WAITING:
            columns["ended"] = _now()
        mine = (notices.c.number == notice.number) & _WAITS & (notices.c.manager == self._manager)
        with self._writing() as connection:
            connection.execute(sa.update(notices).where(mine).values(**columns))

    def tidy(self) -> None:
        """Delete notices whose delivery ended more than KEPT ago."""
        long_ago = (datetime.now(UTC) - KEPT).isoformat(timespec="microseconds")
        with self._writing() as connection:
            connection.execute(sa.delete(notices).where(notices.c.ended < long_ago))


def _tell(
    connection: sa.Connection, event: str, about: str, subject: str, told: Mapping[str, object], own: Receivers
) -> str:
    """Write one notice for each receiver, under one event id, which is returned.

    A command or URL that is named twice is told once.
    """
    event_id, created = str(uuid.uuid4()), _now()
    body = json.dumps({"id": event_id, "time": created, "event": event, "about": about, **told}, ensure_ascii=False)
    wanted = {(way, to): secret for way, to, secret in [*_each(_everywhere(connection)), *_each(own)]}
    for (way, to), secret in wanted.items():
        columns = {"event_id": event_id, "event": event, "about": about, "subject": subject, "body": body}
        columns |= {"way": way.value, "receiver": to, "created": created, "state": NoticeState.WAITING.value}
        connection.execute(sa.insert(notices).values(secret=secret, **columns))
    return event_id


def _each(to: Receivers) -> Iterator[tuple[Channel, str, str | None]]:
    if to.command:
        yield Channel.COMMAND, to.command, None
    if to.url:
        yield Channel.URL, to.url, str(to.secret) if to.secret else None


def _everywhere(connection: sa.Connection) -> Receivers:
    text = connection.execute(sa.select(receivers.c.receivers)).scalar_one_or_none()
    return load(Receivers, text) if text is not None else NOBODY


def _summary(connection: sa.Connection, job: str) -> dict[str, object] | None:
    """Return what of a job's receipt fits on a pager, None without one; `vmferry job receipt` has all of it."""
    query = sa.select(tables.receipts.c.receipt).where(tables.receipts.c.job == job)
    text = connection.execute(query).scalar_one_or_none()
    if text is None:
        return None
    receipt = load(Receipt, text)
    return {
        "verified": receipt.verified,
        "pause_s": receipt.pause_s,
        "pause_forecast_s": receipt.pause_forecast_s,
        "rounds": receipt.rounds,
        "seconds": round(sum(phase.seconds for phase in receipt.phases), 3),
        "copied_bytes": sum(disk.copied_bytes for disk in receipt.disks),
        "disks": [{"target": d.target, "to": d.to, "root_hash": d.root_hash} for d in receipt.disks],
    }


def _now(later_s: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=later_s)).isoformat(timespec="microseconds")
