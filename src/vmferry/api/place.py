"""Where a worker and its clients meet: the state folder, its socket, its log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmferry.errors import StateUnusable

ALREADY_RUNNING = 75
"""What a worker exits with beside a living one (EX_TEMPFAIL): the other one answers."""
LONGEST_ADDRESS = 107
"""Bytes that a unix socket's address holds; unix(7)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A state folder, by its absolute path."""

    state: Path

    @property
    def socket(self) -> Path:
        return self.state / "worker.sock"

    @property
    def log(self) -> Path:
        return self.state / "worker.log"

    def make(self) -> None:
        """Make the folder, for this user only; one that exists keeps its mode. Raises StateUnusable."""
        try:
            self.state.parent.mkdir(parents=True, exist_ok=True)
            self.state.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateUnusable(state=self.state, reason=error.strerror) from error
        if not os.access(self.state, os.R_OK | os.W_OK | os.X_OK):
            raise StateUnusable(state=self.state, reason="it belongs to another user")

    def address(self) -> str:
        """What bind and connect take: the path, or a short way to it through /proc when it is too long."""
        if len(os.fsencode(self.socket)) <= LONGEST_ADDRESS:
            return str(self.socket)
        folder = os.open(self.state, os.O_PATH | os.O_DIRECTORY)  # stays open: the address lives as long
        return f"/proc/self/fd/{folder}/{self.socket.name}"
