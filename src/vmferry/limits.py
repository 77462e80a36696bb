"""Limits that jobs share: of a host, of a storage. They hold for who copies now and for who comes later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from vmferry.claims import host_slot, storage_slot
from vmferry.errors import UsageError
from vmferry.hosts.protocol import Hosts
from vmferry.model import Scope, SharedLimit, Url
from vmferry.store import Row, Store
from vmferry.transfer import Throttle


def check_rate(limit_bytes_s: int | None) -> None:
    """Raises UsageError for a limit at which nothing would move."""
    if limit_bytes_s is not None and limit_bytes_s < 1:
        raise UsageError(reason=f"a limit of {limit_bytes_s} bytes a second moves nothing: give 1 or more")


class Limits:
    """One budget for each slot that a job can hold, shared by all jobs that hold it."""

    def __init__(self, store: Store, hosts: Hosts) -> None:
        self._store = store
        self._hosts = hosts
        self._throttles: dict[str, Throttle] = {}
        self._heard: tuple[SharedLimit, ...] = ()
        self._lock = Lock()

    def all(self) -> Sequence[SharedLimit]:
        """Those that were set, also to none."""
        return self._store.limits()

    def set(self, limit: SharedLimit) -> SharedLimit:
        """From now on, for every job there; durable when this returns. Raises UsageError, HostUnreachable."""
        check_rate(limit.limit_bytes_s)
        if (limit.scope is Scope.HOST) == bool(limit.place):
            raise UsageError(reason="a limit of a storage names its folder or volume, one of a host names none")
        slot = self._slot(limit)
        self._store.put_limit(limit)
        self._throttle(slot).set_limit(limit.limit_bytes_s)
        return limit

    def refresh(self) -> None:
        """Hear of what was set at another manager. Raises HostUnreachable, and hears it at the next call then."""
        now = self._store.limits()
        if now != self._heard:
            for limit in now:
                self._throttle(self._slot(limit)).set_limit(limit.limit_bytes_s)
            self._heard = now

    def of(self, row: Row) -> tuple[Throttle, ...]:
        """What a job's bytes have to pass, besides its own limit."""
        return self.at(row.connect, row.slots)

    def at(self, connect: str, slots: Sequence[str]) -> tuple[Throttle, ...]:
        """The budgets of these slots, for whoever moves bytes there."""
        for limit in self._store.limits():
            if limit.connect == connect:
                self._throttle(self._slot(limit)).set_limit(limit.limit_bytes_s)
        return tuple(self._throttle(slot) for slot in slots)

    def _throttle(self, slot: str) -> Throttle:
        with self._lock:
            return self._throttles.setdefault(slot, Throttle())

    def _slot(self, limit: SharedLimit) -> str:
        """Named anew each time: a file system's number changes when it is mounted again."""
        if limit.scope is Scope.HOST:
            return host_slot(limit.connect)
        where = Url(limit.place) if "://" in limit.place else Path(limit.place)
        return storage_slot(where, self._hosts.open(limit.connect))
