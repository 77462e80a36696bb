"""Looks once a second how a host's guests are, while background work is under way there, and sets its gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread

import structlog

from vmferry.errors import VmferryError
from vmferry.hosts.protocol import Host
from vmferry.transfer.idle import Idle, Look
from vmferry.transfer.throttle import Gate

log = structlog.get_logger()

LOOK_S = 1.0
LINGER_S = 5.0
"""Looks on so long after the last byte was asked for: a step between two copies is no end."""
AWAY_S = 30.0
"""A host that does not tell is asked again after so long; nothing is held back meanwhile."""
PATIENCE_S = 5.0
"""A host that hangs must not keep a worker from leaving."""

LinkUse = Callable[[], float]
"""How much of a link others use, 0 to 1."""


class Sampler:
    """Of one host. Its thread lives while somebody asks at the gate, and a little longer."""

    def __init__(self, name: str, open_: Callable[[], Host], links: Sequence[LinkUse] = ()) -> None:
        self.gate = Gate(self._ask)
        self._name = name
        self._open = open_
        self._links = links
        self._idle = Idle()
        self._asked_at = 0.0
        self._lock = Lock()
        self._thread: Thread | None = None
        self._closing = Event()

    def close(self) -> None:
        """Stop looking, and hold nobody back."""
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(PATIENCE_S)

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = Thread(target=self._run, name=f"guests of {self._name}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            while self._wanted():
                self._closing.wait(self._look())
        except Exception:
            log.exception("the guests cannot be looked at", host=self._name)  # a thread's own border
            self._end()

    def _wanted(self) -> bool:
        if time.monotonic() - self._asked_at < LINGER_S and not self._closing.is_set():
            return True
        self._end()
        return False

    def _end(self) -> None:
        self._idle.rest()
        self.gate.give(None, "")
        with self._lock:
            self._thread = None

    def _look(self) -> float:
        """Set the gate. Returns the seconds until the next look."""
        try:
            load = self._open().load()
        except VmferryError as error:
            log.warning("the guests cannot be looked at: nothing is held back", host=self._name, why=str(error))
            self._idle.rest()
            self.gate.give(None, "")
            return AWAY_S
        link = max((used() for used in self._links), default=0.0)
        rate = self._idle.look(Look(self.gate.passed_bytes, load, link))
        if self._idle.says and not self.gate.says:
            log.info("giving way", host=self._name, bytes_s=rate, why=self._idle.says)
        elif self.gate.says and not self._idle.says:
            log.info("no longer giving way", host=self._name)
        self.gate.give(rate, self._idle.says)
        return LOOK_S
