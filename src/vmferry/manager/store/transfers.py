"""The durable record of all transfers. Every method is one transaction, durable when it returns."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from vmferry.errors import AmbiguousTransfer, DestinationTaken, NoSuchTransfer, TransferElsewhere
from vmferry.manager.store import notices
from vmferry.manager.store.codec import dump, load
from vmferry.manager.store.database import Database
from vmferry.manager.store.jobs import now
from vmferry.manager.store.tables import transfers
from vmferry.model import NoticeView, Priority
from vmferry.model.transfers import (
    ACTIVE_TRANSFERS,
    AT_WORK,
    CHANGES,
    OVER,
    TransferRequest,
    TransferState,
)
from vmferry.process.state import ALONE
from vmferry.qemu.places import Place

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A transfer in the store."""

    number: int
    id: str
    state: TransferState
    request: TransferRequest
    slots: tuple[str, ...]
    """What it takes bandwidth of: its host and its storages."""
    priority: int
    limit_bytes_s: int | None
    created: str
    ended: str | None
    sentence: str
    kind: str
    failures: int
    retry_at: str | None
    stalled_since: str | None
    """When it failed for the first time since it last moved a byte further."""
    done_bytes: int
    """How far it came: bytes copied, then with those compared."""
    total_bytes: int
    cancel_asked: bool
    manager: str
    """Where its bookmarks lie."""
    receipt: str | None
    """JSON; of a transferred one still with its temporary name."""

    @staticmethod
    def of(found: sa.RowMapping) -> TransferRow:
        given: dict[str, Any] = {name: found[name] for name in TransferRow.__slots__}
        return TransferRow(
            **given
            | {
                "state": TransferState(found["state"]),
                "request": load(TransferRequest, found["request"]),
                "slots": tuple(json.loads(found["slots"])),
            }
        )


class TransferStore:
    """Transfers in a database. Each belongs to the manager that it was given to; all of them can be seen."""

    def __init__(self, url: str, manager: str = ALONE, machine: str | None = None) -> None:
        self._database = Database(url)
        self._manager = manager
        self._machine = machine
        self._reading = self._database.reading
        self._writing = self._database.writing

    def close(self) -> None:
        self._database.close()

    def add(self, transfer: str, request: TransferRequest, slots: Sequence[str]) -> TransferRow:
        """Queue a transfer; the same id again returns the one that is there. Raises DestinationTaken."""
        columns: dict[str, object] = {
            "id": transfer,
            "state": TransferState.QUEUED.value,
            "request": dump(request),
            "active_destination": self._unique(request.destination),
            "manager": self._manager,
            "slots": json.dumps(list(slots)),
            "priority": Priority(request.priority).rank,
            "limit_bytes_s": request.limit_bytes_s,
            "created": now(),
        }
        with self._writing() as connection:
            self._database.take_turn(connection)  # so that both looks hold until it is there
            known = _found(connection, transfers.c.id == transfer)
            if known:
                return known
            taken = _found(connection, transfers.c.active_destination == columns["active_destination"])
            if taken:
                raise DestinationTaken(transfer=taken.id)
            connection.execute(sa.insert(transfers).values(**columns))
            log.info("transfer queued", transfer=transfer)
            return _row(connection, transfer)

    def row(self, transfer: str) -> TransferRow:
        """Return the transfer of exactly that id. Raises NoSuchTransfer."""
        with self._reading() as connection:
            return _row(connection, transfer)

    def find(self, prefix: str) -> str:
        """Return the id that begins so. Raises NoSuchTransfer, AmbiguousTransfer."""
        query = sa.select(transfers.c.id).where(transfers.c.id.startswith(prefix, autoescape=True))
        with self._reading() as connection:
            found: list[str] = list(connection.execute(query.order_by(transfers.c.id)).scalars())
        if not prefix or not found:
            raise NoSuchTransfer(transfer=prefix)
        if len(found) > 1:
            raise AmbiguousTransfer(transfer=prefix, candidates=", ".join(found))
        return found[0]

    def rows(self, states: Collection[TransferState] = ACTIVE_TRANSFERS) -> list[TransferRow]:
        """Return this manager's transfers in these states, by priority, then first come first served."""
        query = sa.select(transfers).where(transfers.c.state.in_([s.value for s in states]))
        query = query.where(transfers.c.manager == self._manager)
        with self._reading() as connection:
            found = connection.execute(query.order_by(transfers.c.priority, transfers.c.number)).mappings()
            return [TransferRow.of(each) for each in found]

    def all(self) -> list[TransferRow]:
        """Return every manager's transfers, newest first."""
        query = sa.select(transfers).order_by(transfers.c.number.desc())
        with self._reading() as connection:
            return [TransferRow.of(found) for found in connection.execute(query).mappings()]

    def notices(self, transfer: str) -> tuple[NoticeView, ...]:
        """Return the notices of a transfer, delivered or not, oldest first."""
        with self._reading() as connection:
            return notices.of_subject(connection, transfer)

    def mine(self, transfer: str) -> TransferRow:
        """Return the transfer of exactly that id. Raises NoSuchTransfer, TransferElsewhere for another manager's."""
        row = self.row(transfer)
        if row.manager != self._manager:
            raise TransferElsewhere(transfer=transfer, manager=row.manager)
        return row

    def take_over(self) -> None:
        """Queue the transfers that a worker that died had at work, or waiting for their next try."""
        for row in self.rows(AT_WORK | {TransferState.TRANSIENT}):
            self.change(row.id, TransferState.QUEUED, {row.state})

    def change(self, transfer: str, to: TransferState, only_from: Collection[TransferState], **columns: object) -> bool:
        """Change a transfer's state if it is in one of `only_from`; False, and nothing done, if it is not.

        This is the one place where a state changes; each change is recorded and logged.
        """
        with self._writing() as connection:
            row = _row(connection, transfer, lock=True)
            if row.state not in only_from:
                return False
            if (row.state, to) not in CHANGES:
                raise ValueError(f"transfer {transfer} cannot go from {row.state.value} to {to.value}")
            cleared = {"sentence": "", "kind": "", "retry_at": None} if to not in OVER else {}
            columns = {**cleared, **columns, "state": to.value}
            if to in OVER:
                columns |= {"active_destination": None, "ended": now()}
            _write(connection, transfer, columns)
            notices.transfer_changed(connection, transfer, to, _told(_row(connection, transfer)), row.request.notify)
        log.info("transfer changed", transfer=transfer, before=row.state.value, now=to.value, why=columns.get("kind"))
        return True

    def ask(self, transfer: str, **columns: object) -> TransferRow:
        """Record what a person wants of a transfer: priority, limit, cancel_asked; or how far it came."""
        with self._writing() as connection:
            _write(connection, transfer, columns)
            return _row(connection, transfer)

    def _unique(self, destination: str) -> str:
        """Return the destination as it must be unique: the same path is another place on another machine."""
        return f"{self._machine} {destination}" if self._machine else destination


def _told(row: TransferRow) -> dict[str, object]:
    """Return what receivers get to know of a transfer, without passwords."""
    source, destination = (Place(at).shown for at in (row.request.source, row.request.destination))
    root_hash = json.loads(row.receipt)["root_hash"] if row.receipt else ""
    sizes = {"done_bytes": row.done_bytes, "total_bytes": row.total_bytes}
    ends = {"source": source, "destination": destination, "root_hash": root_hash}
    return {**ends, **sizes, "sentence": row.sentence, "kind": row.kind}


def _write(connection: sa.Connection, transfer: str, columns: dict[str, object]) -> None:
    connection.execute(sa.update(transfers).where(transfers.c.id == transfer).values(**columns))


def _found(connection: sa.Connection, where: sa.ColumnElement[bool], *, lock: bool = False) -> TransferRow | None:
    query = sa.select(transfers).where(where)
    found = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return TransferRow.of(found) if found is not None else None


def _row(connection: sa.Connection, transfer: str, *, lock: bool = False) -> TransferRow:
    found = _found(connection, transfers.c.id == transfer, lock=lock)
    if found is None:
        raise NoSuchTransfer(transfer=transfer)
    return found
