"""Transfers that outlive the command that asked for them: submit, list, watch, suspend, resume, cancel, acknowledge.

What a person wants is written to the store first, then told to the transfer if it is at work. There is no engine: a
transfer is one act, and its bookmarks say how far it came.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Condition, Lock

import structlog

from vmferry.errors import StoreAway, TransferWrongState, VmferryError
from vmferry.hosts.interface import Hosts
from vmferry.manager.limits.shared import Limits, check_rate
from vmferry.manager.limits.slots import host_slot, jobs_at_once, storage_slot
from vmferry.manager.notify import delivery
from vmferry.manager.store.codec import load
from vmferry.manager.store.transfers import TransferRow, TransferStore
from vmferry.manager.transfers.runner import TransferRunner
from vmferry.manager.transfers.running import Halt, TransferProgress
from vmferry.model import Priority, Seal, Url
from vmferry.model.transfers import NEEDS_WORKER, OVER, TransferRequest, TransferState, TransferView
from vmferry.process.state import ManagerIdentity
from vmferry.qemu.places import Scheme
from vmferry.transfer import Place
from vmferry.transfer.endpoints.location import locate
from vmferry.transfer.endpoints.route import PlaceKind
from vmferry.transfer.standalone import DiskCopy
from vmferry.transfer.verification.receipts import CopyReceipt, resealed

log = structlog.get_logger()

WAITS = frozenset({TransferState.SUSPENDED, TransferState.TRANSIENT, TransferState.ERROR})


class Transfers:
    """All transfers of one manager. All methods but `start` and `close` may be called from any thread.

    Transfers of other managers with the same records can be seen, and steered only there.
    """

    def __init__(
        self, at: Path | ManagerIdentity, hosts: Hosts, limits: Limits, most: Callable[[str], int] = jobs_at_once
    ) -> None:
        identity = ManagerIdentity.at(at) if isinstance(at, Path) else at
        self._memory = identity.folder / "transfers"
        self._hosts = hosts
        self._store = TransferStore(identity.records, identity.manager, identity.machine)
        self._carriers = TransferRunner(self._store, limits, self._carriage, self._bump, self._arrived, most)
        self._versions: Counter[str] = Counter()
        self._changed = Condition()
        self._handing_over = Lock()  # what is given its name is not cancelled, and the other way round
        self._closing = False

    # -- life

    def start(self) -> None:
        """Go on with all transfers that were in flight. The caller holds the state folder's lock."""
        self._store.take_over()
        for row in self._store.rows(OVER):
            shutil.rmtree(self._memory / row.id, ignore_errors=True)
        for row in self._store.rows({TransferState.TRANSFERRED}):
            self._arrived(row)
        self._carriers.start()

    def close(self) -> None:
        """Leave all transfers as they are, for the next worker to go on with."""
        self._closing = True
        if self._carriers.close():
            self._store.close()
        else:
            log.warning("a transfer has not stopped: its storage does not answer")

    # -- looking

    def list(self) -> list[TransferView]:
        """Return all transfers, newest first."""
        return [self._view(row) for row in self._store.all()]

    def get(self, id: str) -> TransferView:
        """Return the transfer whose id begins so. Raises NoSuchTransfer, AmbiguousTransfer."""
        return self._view(self._row(id))

    def receipt(self, id: str) -> CopyReceipt:
        """Return an acknowledged transfer's receipt. Raises NoSuchTransfer, AmbiguousTransfer, TransferWrongState."""
        row = self._row(id)
        if row.state is not TransferState.ACKNOWLEDGED or row.receipt is None:
            raise _wrong(row, "a receipt", "acknowledged")
        found: CopyReceipt = json.loads(row.receipt)
        return found

    def changed(self, id: str, after: int, timeout_s: float) -> tuple[int, TransferView]:
        """Wait until the transfer's version differs from `after`, at most `timeout_s`. Returns its version and itself.

        Versions belong to this process, and begin at 1: with `after` 0 this returns at once.
        """
        found = self._row(id).id
        with self._changed:
            self._changed.wait_for(lambda: self._versions[found] + 1 != after or self._closing, timeout_s)
            version = self._versions[found] + 1
        return version, self.get(found)

    def in_flight(self) -> int:
        """Count the transfers that need this worker, not those that wait for a person; 1 while the store is away."""
        try:
            return sum(row.state in NEEDS_WORKER or row.cancel_asked for row in self._store.rows())
        except StoreAway:
            return 1  # nobody knows: stay

    # -- asking

    def submit(self, id: str, request: TransferRequest) -> TransferView:
        """Queue a transfer; durable when this returns. The same id again returns the same transfer.

        Raises BadPlace, DestinationExists, DestinationTaken, UsageError, and writes nothing then.
        """
        check_rate(request.limit_bytes_s)
        delivery.check(request.notify)
        known = [row for row in self._store.all() if row.id == id]
        if known:
            return self._view(known[0])
        _carriage(self._memory / id, request).check()
        row = self._store.add(id, request, self._slots(request))
        self._carriers.look()
        return self._view(row)

    def suspend(self, id: str) -> TransferView:
        """Stop a transfer until it is resumed; one that is suspended stays so. Raises TransferWrongState."""
        row = self._mine(id)
        if not self._store.change(row.id, TransferState.SUSPENDED, NEEDS_WORKER):
            self._expect(row.id, {TransferState.SUSPENDED}, "suspend", "queued or at work")
        self._carriers.halt(row.id, Halt.SUSPEND)
        return self._told(row.id)

    def resume(self, id: str) -> TransferView:
        """Queue a transfer that is suspended or met an error, at once. Raises TransferWrongState."""
        row = self._mine(id)
        if not self._store.change(row.id, TransferState.QUEUED, WAITS, stalled_since=None):
            self._expect(row.id, NEEDS_WORKER, "resume", "suspended or in error")
        self._carriers.look(anew=row.id)
        return self._told(row.id)

    def cancel(self, id: str) -> TransferView:
        """Have all of a transfer removed; durable when this returns, done soon after. Raises TransferWrongState."""
        row = self._mine(id)
        with self._handing_over:
            row = self._store.row(row.id)
            if row.state is TransferState.ACKNOWLEDGED:
                raise _wrong(row, "cancel", "not acknowledged")
            if row.state is not TransferState.CANCELLED:
                self._store.ask(row.id, cancel_asked=True)
        self._carriers.halt(row.id, Halt.CANCEL)
        return self._told(row.id)

    def acknowledge(self, id: str) -> TransferView:
        """Give a transferred disk its name, and forget how it came there; doing it again does nothing.

        Raises TransferWrongState, DestinationExists, DestinationUnwritable.
        """
        row = self._mine(id)
        with self._handing_over:
            row = self._store.row(row.id)
            if row.state is not TransferState.ACKNOWLEDGED:
                self._hand_over(row)
        return self._told(row.id)

    def _hand_over(self, row: TransferRow) -> None:
        """Give the copy its name, record that, drop the bookmarks. Raises TransferWrongState.

        In this order, so that after a crash in between it is done again.
        """
        if row.state is not TransferState.TRANSFERRED or row.receipt is None or row.cancel_asked:
            raise _wrong(row, "acknowledge", "transferred")
        carriage, receipt = self._carriage(row), json.loads(row.receipt)
        seal = carriage.hand_over(load(Seal, json.dumps(receipt["seal"])) if receipt["seal"] else None)
        left = json.dumps(resealed({name: receipt[name] for name in receipt if name != "checksum"}, seal))
        self._store.change(row.id, TransferState.ACKNOWLEDGED, {TransferState.TRANSFERRED}, receipt=left)
        carriage.forget()
        shutil.rmtree(self._memory / row.id, ignore_errors=True)

    def limit(self, id: str, limit_bytes_s: int | None) -> TransferView:
        """Limit a transfer to so many bytes a second from now on, None: no limit.

        Raises TransferWrongState, UsageError.
        """
        check_rate(limit_bytes_s)
        return self._set(id, "a new limit", limit_bytes_s=limit_bytes_s)

    def prefer(self, id: str, priority: Priority) -> TransferView:
        """Change a transfer's priority, before and at work. Raises TransferWrongState."""
        return self._set(id, "another priority", priority=priority.rank)

    def _set(self, id: str, action: str, **columns: object) -> TransferView:
        row = self._mine(id)
        if row.state in OVER:
            raise _wrong(row, action, "not over")
        self._carriers.steer(row.id, lambda: self._store.ask(row.id, **columns))
        return self._told(row.id)

    def _expect(self, id: str, states: Collection[TransferState], action: str, allowed: str) -> None:
        row = self._store.row(id)
        if row.state not in states:
            raise _wrong(row, action, allowed)

    def _told(self, id: str) -> TransferView:
        self._bump(id)
        self._carriers.look()
        return self._view(self._store.row(id))

    # -- below

    def _row(self, prefix: str) -> TransferRow:
        return self._store.row(self._store.find(prefix))

    def _mine(self, prefix: str) -> TransferRow:
        return self._store.mine(self._store.find(prefix))

    def _arrived(self, row: TransferRow) -> None:
        """Hand over a transferred disk if that was asked for.

        What stands in the way is recorded, and somebody acknowledges the transfer later.
        """
        if not row.request.hand_over or row.cancel_asked:
            return
        try:
            self.acknowledge(row.id)
        except VmferryError as error:
            self._store.ask(row.id, sentence=str(error), kind=type(error).__name__)

    def _bump(self, transfer: str) -> None:
        with self._changed:
            self._versions[transfer] += 1
            self._changed.notify_all()

    def _carriage(self, row: TransferRow) -> DiskCopy:
        return _carriage(self._memory / row.id, row.request)

    def _slots(self, request: TransferRequest) -> tuple[str, ...]:
        storages = {self._storage(place, request.connect) for place in _ends(request)}
        return tuple(sorted({host_slot(request.connect)} | storages))

    def _storage(self, place: Place, connect: str) -> str:
        """Return a place's slot, named as for jobs, so that both share its budget.

        Looks at the file system; does not talk to libvirt.
        """
        host = self._hosts.open(connect)
        if place.scheme is not Scheme.PATH:
            return storage_slot(Url(place.shown), host)
        file = locate(place).kind is PlaceKind.FILE
        return storage_slot(place.path.parent, host) if file else f"storage {place.path}"

    def _view(self, row: TransferRow) -> TransferView:
        course = self._carriers.course(row.id) or TransferProgress("", row.done_bytes, row.total_bytes)
        source, destination = _ends(row.request)
        return TransferView(
            id=row.id,
            state=row.state,
            source=source.shown,
            destination=destination.shown,
            source_format=source.format,
            destination_format=destination.format,
            created=row.created,
            priority=list(Priority)[row.priority].value,
            limit_bytes_s=row.limit_bytes_s,
            retry_delay_s=row.request.retry_delay_s,
            no_progress_s=row.request.no_progress_s,
            phase=course.phase,
            done_bytes=min(course.done_bytes, course.total_bytes),
            total_bytes=course.total_bytes,
            rate_bytes_s=course.rate_bytes_s,
            held=course.held if row.state is not TransferState.QUEUED else self._carriers.closed(row),
            failures=row.failures,
            sentence=row.sentence,
            kind=row.kind,
            retry_at=row.retry_at,
            cancel_asked=row.cancel_asked,
            ended=row.ended,
            root_hash=str(json.loads(row.receipt)["root_hash"]) if row.receipt else "",
            notices=self._store.notices(row.id),
        )


def _ends(request: TransferRequest) -> tuple[Place, Place]:
    """Return source and destination of a request. Raises BadPlace."""
    return _place(request.source, request.source_format, request), _place(
        request.destination, request.destination_format, request
    )


def _place(at: str, format_: str, request: TransferRequest) -> Place:
    place = Place(at, format_)
    return Place(at, format_, request.tls) if request.tls and place.encrypted else place


def _carriage(memory: Path, request: TransferRequest) -> DiskCopy:
    source, destination = _ends(request)
    return DiskCopy(source, destination, memory)


def _wrong(row: TransferRow, action: str, allowed: str) -> TransferWrongState:
    return TransferWrongState(transfer=row.id, state=row.state.value, action=action, allowed=allowed)
