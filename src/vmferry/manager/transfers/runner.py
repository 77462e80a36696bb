"""Runs transfers: decides which may run, runs each in a thread of its own, records how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Condition, Event, Thread

import structlog

from vmferry.errors import HostUnreachable, VmferryError
from vmferry.errors.system import in_words
from vmferry.manager.limits.shared import Limits
from vmferry.manager.store.jobs import now
from vmferry.manager.store.transfers import TransferRow, TransferStore
from vmferry.manager.transfers.running import Halt, Halted, RunningTransfer, TransferProgress
from vmferry.manager.transfers.scheduling import QueueEntry, schedule
from vmferry.model.transfers import ACTIVE_TRANSFERS, AT_WORK, TransferRequest, TransferState
from vmferry.transfer import Throttle
from vmferry.transfer.standalone import CopyResult, DiskCopy
from vmferry.transfer.verification.receipts import receipt

log = structlog.get_logger()

QUEUE_POLL_S = 15.0
"""The dispatcher looks so often without being asked: for what an error of the store left behind."""
PATIENCE_S = 20.0

CarriageOf = Callable[[TransferRow], DiskCopy]


class TransferRunner:
    """Runs this process's transfers.

    `changed` is called with the id of each transfer that changes, `arrived` with each that is transferred.
    """

    def __init__(
        self,
        store: TransferStore,
        limits: Limits,
        carriage: CarriageOf,
        changed: Callable[[str], None],
        arrived: Callable[[TransferRow], None],
        most: Callable[[str], int],
    ) -> None:
        self._store = store
        self._limits = limits
        self._carriage = carriage
        self._changed = changed
        self._arrived = arrived
        self._most = most
        self._at_work: dict[str, RunningTransfer] = {}
        self._not_before: dict[str, float] = {}  # on the monotonic clock, so that setting the time moves nothing
        self._lock = Condition()
        self._wake = Event()
        self._closing = False
        self._dispatcher = Thread(target=self._dispatch, name="transfers", daemon=True)

    def start(self) -> None:
        self._limits.tell(self._opened_or_closed)
        self._dispatcher.start()

    def close(self) -> bool:
        """Stop all transfers, as they are. False if one has not stopped: its storage does not answer."""
        self._closing = True
        self._wake.set()
        self._dispatcher.join()
        with self._lock:
            for carrying in self._at_work.values():
                carrying.halt(Halt.CLOSE)
            return self._lock.wait_for(lambda: not self._at_work, PATIENCE_S)

    def look(self, *, anew: str | None = None) -> None:
        """Begin and preempt transfers now; `anew`: also to this transfer if it would have to wait for its next try."""
        if anew is not None:
            self._not_before.pop(anew, None)
        self._wake.set()

    def halt(self, transfer: str, why: Halt) -> None:
        with self._lock:
            carrying = self._at_work.get(transfer)
            if carrying is not None:
                carrying.halt(why)

    def steer(self, transfer: str, write: Callable[[], TransferRow]) -> TransferRow:
        """Write down new limits of a transfer and give them to it if it is at work; it cannot begin in between."""
        with self._lock:
            row = write()
            carrying = self._at_work.get(transfer)
            if carrying is not None:
                carrying.throttle.set_limit(row.limit_bytes_s)
                carrying.throttle.rank = row.priority
        return row

    def course(self, transfer: str) -> TransferProgress | None:
        carrying = self._at_work.get(transfer)
        return carrying.course if carrying is not None else None

    def closed(self, row: TransferRow) -> str:
        """Say why a transfer cannot begin, if a calendar is the reason; else empty."""
        return self._limits.closed(row.slots)

    def _opened_or_closed(self) -> None:
        for row in self._store.rows({TransferState.QUEUED}):
            self._changed(row.id)
        self._wake.set()

    # -- scheduling

    def _dispatch(self) -> None:
        while not self._closing:
            self._wake.clear()
            if self._closing:
                return
            try:
                self._reschedule()
            except Exception:
                log.exception("transfers could not be started; trying again")  # a thread's own border
            self._wake.wait(self._rest_s())

    def _reschedule(self) -> None:
        for row in self._store.rows(AT_WORK | {TransferState.TRANSIENT}):
            if row.id not in self._at_work and self._is_due(row.id):  # at work with nobody: the store failed
                self._store.change(row.id, TransferState.QUEUED, {row.state})
                self._changed(row.id)
        rows = {row.id: row for row in self._store.rows()}
        for row in rows.values():
            if row.cancel_asked and row.id not in self._at_work and self._is_due(row.id):
                self._begin(row, self._drop)
        waiting = [_claim(r) for r in rows.values() if r.state is TransferState.QUEUED and not r.cancel_asked]
        at_work = [
            _claim(rows[id], leaving=carrying.halted is not None)
            for id, carrying in list(self._at_work.items())
            if id in rows
        ]
        ready = [c for c in waiting if c.id not in self._at_work and not self._limits.closed(c.slots)]
        decided = schedule(ready, at_work, self._most)
        for id in decided.preempt:
            self.halt(id, Halt.MAKE_WAY)
        for id in decided.begin:
            self._begin(rows[id], self._carry)

    def _is_due(self, transfer: str) -> bool:
        return self._not_before.get(transfer, 0.0) <= time.monotonic()

    def _rest_s(self) -> float:
        """Seconds until the next try that is due, QUEUE_POLL_S at most."""
        now_s = time.monotonic()
        return max(0.0, min([QUEUE_POLL_S, *(at - now_s for at in list(self._not_before.values()) if at > now_s)]))

    # -- one transfer, in its own thread

    def _begin(self, row: TransferRow, act: Callable[[TransferRow, RunningTransfer], None]) -> None:
        throttle = Throttle(row.limit_bytes_s, above=self._limits.at(row.request.connect, row.slots), rank=row.priority)
        self._not_before.pop(row.id, None)
        with self._lock:
            carrying = RunningTransfer(throttle, lambda: self._moving(row.id), lambda: self._changed(row.id))
            self._at_work[row.id] = carrying
            newest = self._store.row(row.id)  # again, under the lock: an order may have come meanwhile
            throttle.set_limit(newest.limit_bytes_s)
            throttle.rank = newest.priority
        Thread(target=self._take, args=(newest, carrying, act), name=f"transfer {row.id}", daemon=True).start()

    def _take(
        self, row: TransferRow, carrying: RunningTransfer, act: Callable[[TransferRow, RunningTransfer], None]
    ) -> None:
        try:
            act(row, carrying)
        except Exception:  # a thread's own border: the store failed, perhaps
            log.exception("a transfer ended in a way nobody foresaw", transfer=row.id)
            self._not_before[row.id] = time.monotonic() + QUEUE_POLL_S
        finally:
            with self._lock:
                del self._at_work[row.id]
                self._lock.notify_all()
            self._changed(row.id)
            self._wake.set()

    def _carry(self, row: TransferRow, carrying: RunningTransfer) -> None:
        if row.cancel_asked or not self._store.change(row.id, TransferState.CONNECTING, {TransferState.QUEUED}):
            return
        self._changed(row.id)
        try:
            carried = carrying.carry(self._carriage(row), row.request.streams)
        except Halted:
            self._store.ask(row.id, **_far(row, carrying))
            if carrying.halted is Halt.MAKE_WAY:
                self._store.change(row.id, TransferState.QUEUED, AT_WORK)
        except VmferryError as error:
            self._failed(row, carrying, error)
        except Exception as error:
            log.exception("a transfer failed in a way nobody foresaw", transfer=row.id)
            self._failed(row, carrying, error)
        else:
            self._transferred(row, carrying, carried)

    def _moving(self, transfer: str) -> None:
        self._store.change(transfer, TransferState.TRANSFERRING, {TransferState.CONNECTING})

    def _transferred(self, row: TransferRow, carrying: RunningTransfer, carried: CopyResult) -> None:
        """Record a transfer as transferred, with its receipt.

        If it was suspended meanwhile, nothing is done: it is found whole when it is resumed.
        """
        ends = self._carriage(row)
        left = json.dumps(receipt(ends.source, ends.destination, carried))
        self._moving(row.id)  # of a disk without a byte
        far = _far(row, carrying) | {"stalled_since": None}
        if self._store.change(row.id, TransferState.TRANSFERRED, {TransferState.TRANSFERRING}, receipt=left, **far):
            self._arrived(self._store.row(row.id))

    def _failed(self, row: TransferRow, carrying: RunningTransfer, error: Exception) -> None:
        """Have a failed transfer tried again later, or wait for a person.

        The latter if no error of this kind passes, or it has not for too long.
        """
        far = _far(row, carrying)
        stalled = now() if carrying.far_bytes > row.done_bytes else row.stalled_since or now()
        failure = {"sentence": in_words(error), "kind": type(error).__name__, "failures": row.failures + 1}
        columns = {**far, **failure, "stalled_since": stalled}
        passing = isinstance(error, HostUnreachable) or (isinstance(error, VmferryError) and error.passing)
        if not passing or _given_up(row.request, stalled):
            self._store.change(row.id, TransferState.ERROR, AT_WORK, **columns)
            return
        delay_s = row.request.retry_delay_s
        self._not_before[row.id] = time.monotonic() + delay_s
        retry_at = (datetime.now(UTC) + timedelta(seconds=delay_s)).isoformat(timespec="microseconds")
        self._store.change(row.id, TransferState.TRANSIENT, AT_WORK, retry_at=retry_at, **columns)

    def _drop(self, row: TransferRow, carrying: RunningTransfer) -> None:
        """Remove what a cancelled transfer made; tried again and again while its storage does not allow it."""
        try:
            self._carriage(row).give_up()
        except VmferryError as error:
            self._store.ask(row.id, sentence=str(error), kind=type(error).__name__)
            self._not_before[row.id] = time.monotonic() + QUEUE_POLL_S
            return
        self._store.change(row.id, TransferState.CANCELLED, ACTIVE_TRANSFERS, sentence="", kind="")


def _claim(row: TransferRow, *, leaving: bool = False) -> QueueEntry:
    return QueueEntry(row.id, row.priority, row.number, row.slots, leaving)


def _far(row: TransferRow, carrying: RunningTransfer) -> dict[str, int]:
    """Return what is kept of a transfer's progress."""
    total_bytes = carrying.course.total_bytes or row.total_bytes
    return {"done_bytes": max(row.done_bytes, carrying.far_bytes), "total_bytes": total_bytes}


def _given_up(request: TransferRequest, stalled_since: str) -> bool:
    """Tell whether a transfer that fails is not tried again: it made no progress for `no_progress_s`.

    As in BITS, a retry delay longer than that time means that it is never tried again.
    """
    stalled_s = (datetime.now(UTC) - datetime.fromisoformat(stalled_since)).total_seconds()
    return request.retry_delay_s > request.no_progress_s or stalled_s >= request.no_progress_s
