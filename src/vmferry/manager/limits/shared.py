"""Limits that jobs share: of a host, of a storage. They hold for jobs that copy now and for those that come later.

A calendar lowers them by the hour: a thread looks at the clock once a second. And each host has a gate, where
background work gives way to its guests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from threading import Event, Lock, Thread

import structlog

from vmferry.errors import StoreAway, UsageError, VmferryError
from vmferry.hosts.interface import Hosts
from vmferry.manager.limits.sampler import Sampler
from vmferry.manager.limits.slots import HOST, host_slot, storage_slot
from vmferry.manager.store import Row, Store
from vmferry.model import InForce, LimitView, Scope, SharedLimit, Url
from vmferry.model.limits import Local, in_force, limit_at
from vmferry.transfer import Throttle

log = structlog.get_logger()

SHARE_S = 1.0
"""Between two divisions of the limits among the transfers that run."""
REREAD_LOOKS = 5
"""After so many looks the store is read again: another manager may have set a limit."""
PATIENCE_S = 5.0
"""A storage that hangs must not keep a worker from leaving."""


def check_rate(limit_bytes_s: int | None) -> None:
    """Raise UsageError for a limit, in bytes a second, at which nothing would move."""
    if limit_bytes_s is not None and limit_bytes_s < 1:
        raise UsageError(reason=f"a limit of {limit_bytes_s} bytes a second moves nothing: give 1 or more")


class Limits:
    """Budgets in bytes a second, one for each slot that a job can hold, shared by all jobs that hold it."""

    def __init__(
        self, store: Store, hosts: Hosts, clock: Callable[[], float] = time.time, local: Local = time.localtime
    ) -> None:
        self._store = store
        self._hosts = hosts
        self.clock = clock
        self.local = local
        self._throttles: dict[str, Throttle] = {}
        self._samplers: dict[tuple[str, bool], Sampler] = {}
        self._known: dict[str, tuple[SharedLimit, str]] = {}  # by name and host: the limit, and whose it is
        self._told: dict[str, tuple[int | None, bool]] = {}
        self._until: dict[SharedLimit, tuple[float, InForce]] = {}
        self._heard_by: list[Callable[[], None]] = []
        self._lock = Lock()
        self._closing = Event()
        self._watch = Thread(target=self._look_at_the_clock, name="limits", daemon=True)

    def start(self) -> None:
        """Apply the calendars before anything begins, and look at the clock from now on."""
        self._reread(limit for limit in self._store.limits() if limit.during)
        self._apply()
        self._watch.start()

    def close(self) -> None:
        self._closing.set()
        if self._watch.ident is not None:
            self._watch.join(PATIENCE_S)
        for sampler in self._samplers.values():
            sampler.close()

    def tell(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever a place begins, or ends, to let nothing move."""
        self._heard_by.append(changed)

    # -- asking

    def all(self) -> Sequence[SharedLimit]:
        """Return the limits that were set, also those set to none."""
        return self._store.limits()

    def seen(self) -> list[LimitView]:
        """Return the limits that were set, with what holds at present."""
        return [self.view(limit) for limit in self.all()]

    def view(self, limit: SharedLimit) -> LimitView:
        now = in_force(limit, self.clock(), self.local)
        until = None if now.until_s is None else datetime.fromtimestamp(now.until_s, UTC).isoformat()
        return LimitView(
            limit.scope,
            limit.connect,
            limit.place,
            limit.limit_bytes_s,
            limit.during,
            now_bytes_s=now.limit_bytes_s,
            until=until,
        )

    def set(self, limit: SharedLimit) -> SharedLimit:
        """Set a limit for every job on that host or storage. Raises UsageError, HostUnreachable.

        It holds from now on, and is durable when this returns.
        """
        return self.change(limit.scope, limit.connect, limit.place, lambda _: limit)

    def change(self, scope: Scope, connect: str, place: str, edit: Callable[[SharedLimit], SharedLimit]) -> SharedLimit:
        """Set a limit to what `edit` makes of the one before; no other change comes between.

        It is durable when this returns. Raises UsageError, HostUnreachable.
        """
        if (scope is Scope.HOST) == bool(place):
            raise UsageError(reason="a limit of a storage names its folder or volume, one of a host names none")
        none = SharedLimit(scope, connect, place, None)
        slot = self._slot(none)
        with self._lock:
            limit = self._store.edit_limit(none, lambda before: _checked(edit(before)))
            self._known[_key(limit)] = (limit, slot)
        self._apply()
        return limit

    def of(self, row: Row) -> tuple[Throttle, ...]:
        """Return the throttles that a job's bytes have to pass, besides its own limit."""
        return self.at(row.connect, row.slots)

    def at(self, connect: str, slots: Sequence[str]) -> tuple[Throttle, ...]:
        """Return the budgets of these slots, and the gates of their hosts, which bytes moved there have to pass."""
        for limit in self._store.limits():
            if limit.connect == connect:
                self._know(limit, self._slot(limit))
        self._apply()
        hosts = [slot.removeprefix(HOST) for slot in slots if slot.startswith(HOST)]
        gates = [self._gate(host, crosses=len(hosts) > 1) for host in hosts]
        return (*(self._throttle(slot) for slot in slots), *gates)

    def closed(self, slots: Sequence[str]) -> str:
        """Say why nothing moves at these slots at present; empty when it does."""
        return next(filter(None, (self._throttle(slot).closed for slot in slots)), "")

    # -- the clock

    def _look_at_the_clock(self) -> None:
        looks = 0
        while not self._closing.wait(SHARE_S):
            looks += 1
            try:
                if looks % REREAD_LOOKS == 0:
                    self._reread(self._store.limits())
                self._apply()
            except StoreAway as away:
                log.warning("limits could not be read again; trying later", reason=str(away))
            except Exception:
                log.exception("limits could not be looked at; trying again")  # a thread's own border

    def _reread(self, limits: Iterable[SharedLimit]) -> None:
        """Take in limits from the store.

        A slot that is known stays so: naming it anew asks a storage, which may hang.
        """
        for limit in limits:
            _, slot = self._known.get(_key(limit), (limit, ""))
            try:
                self._know(limit, slot or self._slot(limit))
            except VmferryError as error:
                log.warning("a limit waits for its host", limit=limit.name, why=str(error))

    def _know(self, limit: SharedLimit, slot: str) -> None:
        with self._lock:
            self._known[_key(limit)] = (limit, slot)

    def _apply(self) -> None:
        """Give each throttle the limit that holds now; the lowest, where a storage is known by several names."""
        now_s = self.clock()
        with self._lock:
            slots: dict[str, list[SharedLimit]] = {}
            for limit, slot in self._known.values():
                slots.setdefault(slot, []).append(limit)
            changed = [self._tell(slot, limits, now_s) for slot, limits in slots.items()]
        if any(changed):
            for heard in self._heard_by:
                heard()

    def _tell(self, slot: str, limits: Sequence[SharedLimit], now_s: float) -> bool:
        """Give a slot's throttle what holds now. Returns True when it has begun or ended to let nothing move."""
        held = {limit: limit_at(limit, now_s, self.local) for limit in limits}
        closed = next((limit for limit, most in held.items() if most == 0), None)
        open_ = [most or limit.limit_bytes_s for limit, most in held.items()]  # a mirror that runs is not stopped
        lowest = min((most for most in open_ if most is not None), default=None)
        throttle, before = self._throttle(slot), self._told.get(slot, (None, False))
        if before[0] != lowest:
            throttle.set_limit(lowest)
        why = "" if closed is None else self._why(closed, now_s)
        if throttle.closed != why:
            throttle.close(why)
        self._told[slot] = (lowest, closed is not None)
        if before != self._told[slot]:
            log.info("limit", of=slot, bytes_s=lowest, closed=closed is not None)
        return before[1] != (closed is not None)

    def _why(self, limit: SharedLimit, now_s: float) -> str:
        """Say why a calendar lets nothing move, and until when.

        The end is looked for once, and again when the clock has left what was found.
        """
        since_s, now = self._until.get(limit, (inf, InForce(None, None)))
        if not since_s <= now_s < (inf if now.until_s is None else now.until_s):
            now = in_force(limit, now_s, self.local)
            self._until[limit] = (now_s, now)
        until = "" if now.until_s is None else time.strftime(" until %a %H:%M", self.local(now.until_s))
        return f"waiting{until}: the calendar of {limit.name} lets nothing move"

    # -- below

    def _throttle(self, slot: str) -> Throttle:
        return self._throttles.setdefault(slot, Throttle())

    def _gate(self, connect: str, *, crosses: bool) -> Throttle:
        """Return a host's gate for work that stays on it, or, if it `crosses`, that goes over its link to other hosts.

        Only the latter takes the link's load into account.
        """
        with self._lock:
            if (connect, crosses) not in self._samplers:
                sampler = Sampler(connect, lambda: self._hosts.open(connect), crosses=crosses)
                self._samplers[connect, crosses] = sampler
            return self._samplers[connect, crosses].gate

    def _slot(self, limit: SharedLimit) -> str:
        """Return the slot that a limit is for, named anew: a file system's number changes when it is mounted again."""
        if limit.scope is Scope.HOST:
            return host_slot(limit.connect)
        where = Url(limit.place) if "://" in limit.place else Path(limit.place)
        return storage_slot(where, self._hosts.open(limit.connect))


def _checked(limit: SharedLimit) -> SharedLimit:
    check_rate(limit.limit_bytes_s)
    return limit


def _key(limit: SharedLimit) -> str:
    return f"{limit.connect} {limit.name}"
