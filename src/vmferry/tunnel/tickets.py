"""Who may use a tunnel, for what, how often and until when."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Protocol

from vmferry.errors import TunnelCut, VmferryError


class Cuttable(Protocol):
    """A connection that stands on a ticket."""

    def cut(self, error: VmferryError) -> None:
        """End it: when this returns nothing more is delivered here. From any thread, at any time, also again."""


@dataclass(eq=False, slots=True)
class _Entry:
    path: Path
    until: float
    uses: int | None
    open: set[Cuttable] = field(default_factory=set)


class Tickets:
    """The tickets of one host, in memory: those of a process that ends go with it, and so do their connections.

    Only a hash of a ticket is kept, so that looking one up tells nothing by the time it takes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._entries: dict[bytes, _Entry] = {}

    def issue(self, path: Path, seconds: float, uses: int | None = 1) -> str:
        """A new ticket that leads to the unix socket at `path`.

        It can be shown for so many seconds and so many times, None for any number. What it let in stays until it
        ends, or until the ticket is withdrawn.
        """
        ticket = secrets.token_hex(32)
        with self._lock:
            self._sweep()
            self._entries[_hash(ticket)] = _Entry(path, self._clock() + seconds, uses)
        return ticket

    def withdraw(self, ticket: str) -> None:
        """It lets nobody in any more, and what it let in is cut.

        After this returns no more bytes reach the socket that it led to; what had left this host before may still
        arrive at the other. A ticket that is unknown, or was withdrawn before, is fine too.
        """
        with self._lock:
            entry = self._entries.pop(_hash(ticket), None)
            cut = list(entry.open) if entry else []
        for connection in cut:
            connection.cut(TunnelCut(reason="its ticket was withdrawn"))

    def admit(self, ticket: str, connection: Cuttable) -> Path | None:
        """Use the ticket once for this connection: where it leads, None if it is good for nothing (any more)."""
        with self._lock:
            entry = self._entries.get(_hash(ticket))
            if entry is None or self._spent(entry):
                return None
            if entry.uses is not None:
                entry.uses -= 1
            entry.open.add(connection)
            return entry.path

    def ended(self, ticket: str, connection: Cuttable, *, used: bool) -> None:
        """A connection that was admitted is over; one that led nowhere has not used the ticket."""
        with self._lock:
            entry = self._entries.get(_hash(ticket))
            if entry is None or connection not in entry.open:
                return
            entry.open.remove(connection)
            if entry.uses is not None and not used:
                entry.uses += 1
            self._sweep()

    def __len__(self) -> int:
        """Tickets that can be shown, or on which connections stand."""
        with self._lock:
            self._sweep()
            return len(self._entries)

    def _spent(self, entry: _Entry) -> bool:
        return entry.uses == 0 or self._clock() >= entry.until

    def _sweep(self) -> None:
        """Forget those that nobody can use and nothing stands on."""
        gone = [key for key, entry in self._entries.items() if not entry.open and self._spent(entry)]
        for key in gone:
            del self._entries[key]


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "replace")).digest()
