"""Tickets for a tunnel: which socket each leads to, how often it can be shown, and until when."""

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
    """A connection that a ticket has admitted."""

    def cut(self, error: VmferryError) -> None:
        """End the connection at once, so that nothing more is delivered; from any thread, at any time, repeatedly."""


@dataclass(eq=False, slots=True)
class _Entry:
    path: Path
    until: float
    uses: int | None
    open: set[Cuttable] = field(default_factory=set)


class Tickets:
    """The tickets of one host, in memory: when the process ends, its tickets and their connections end with it.

    Only a hash of a ticket is kept, so that the time of a look-up reveals nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._entries: dict[bytes, _Entry] = {}

    def issue(self, path: Path, seconds: float, uses: int | None = 1) -> str:
        """Return a new ticket that leads to the unix socket at `path`.

        It can be shown for so many seconds and so many times, None for any number. Connections that it admitted stay
        until they end, or until the ticket is withdrawn.
        """
        ticket = secrets.token_hex(32)
        with self._lock:
            self._sweep()
            self._entries[_hash(ticket)] = _Entry(path, self._clock() + seconds, uses)
        return ticket

    def withdraw(self, ticket: str) -> None:
        """Make a ticket invalid, and cut the connections that it admitted.

        After this returns no more bytes reach the socket that it led to; what had left this host before may still
        arrive at the other. A ticket that is unknown, or was withdrawn before, is no error.
        """
        with self._lock:
            entry = self._entries.pop(_hash(ticket), None)
            cut = list(entry.open) if entry else []
        for connection in cut:
            connection.cut(TunnelCut(reason="its ticket was withdrawn"))

    def admit(self, ticket: str, connection: Cuttable) -> Path | None:
        """Use the ticket once for this connection. Return the path that it leads to, None if it is not valid."""
        with self._lock:
            entry = self._entries.get(_hash(ticket))
            if entry is None or self._spent(entry):
                return None
            if entry.uses is not None:
                entry.uses -= 1
            entry.open.add(connection)
            return entry.path

    def ended(self, ticket: str, connection: Cuttable, *, used: bool) -> None:
        """Remove an admitted connection that has ended; if it led nowhere, give the use of the ticket back."""
        with self._lock:
            entry = self._entries.get(_hash(ticket))
            if entry is None or connection not in entry.open:
                return
            entry.open.remove(connection)
            if entry.uses is not None and not used:
                entry.uses += 1
            self._sweep()

    def __len__(self) -> int:
        """Return the number of tickets that can be shown, or that have open connections."""
        with self._lock:
            self._sweep()
            return len(self._entries)

    def _spent(self, entry: _Entry) -> bool:
        return entry.uses == 0 or self._clock() >= entry.until

    def _sweep(self) -> None:
        """Forget tickets that can be shown no more and have no open connections."""
        gone = [key for key, entry in self._entries.items() if not entry.open and self._spent(entry)]
        for key in gone:
            del self._entries[key]


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "replace")).digest()
