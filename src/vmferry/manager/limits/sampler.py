"""Samples a host's load once a second while background work is under way there, and sets its gate."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread

import structlog

from vmferry.errors import VmferryError
from vmferry.hosts.interface import Host
from vmferry.manager.limits.guest_backoff import BackgroundRate, Sample
from vmferry.model import Load
from vmferry.transfer.throttle import Gate

log = structlog.get_logger()

SAMPLE_S = 1.0
"""Between two samples of a host: the latencies of its guests are read over one second."""
LINGER_S = 5.0
"""Looks on so long after the last byte was asked for: a step between two copies is no end."""
AWAY_S = 30.0
"""A host that does not tell is asked again after so long; nothing is held back meanwhile."""
PATIENCE_S = 5.0
"""A host that hangs must not keep a worker from leaving."""

LINK_LOOKS = 4
"""A link's use is that of the looks so far back: what we admit at once, it carries a while later."""


class Sampler:
    """Samples one host's load. Its thread lives while somebody asks at the gate, and LINGER_S longer."""

    def __init__(self, name: str, open_: Callable[[], Host], *, crosses: bool = False) -> None:
        """Sample the host that `open_` opens; `crosses`: what passes this gate goes over the host's link to others."""
        self.gate = Gate(self._ask)
        self._name = name
        self._open = open_
        self._crosses = crosses
        self._looks: deque[tuple[Load, int]] = deque(maxlen=LINK_LOOKS)
        """What was seen last, and all that had passed by then."""
        self._idle = BackgroundRate()
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
        self._let_all_pass()
        with self._lock:
            self._thread = None

    def _let_all_pass(self) -> None:
        """Open the gate, and forget the samples: what was seen last tells nothing any more."""
        self._looks.clear()
        self._idle.rest()
        self.gate.give(None, "")

    def _look(self) -> float:
        """Sample the host's load and set the gate. Returns the seconds until the next look."""
        try:
            load = self._open().load()
        except VmferryError as error:
            log.warning("the guests cannot be looked at: nothing is held back", host=self._name, why=str(error))
            self._let_all_pass()
            return AWAY_S
        passed = self.gate.passed_bytes
        self._looks.append((load, passed))
        link = used_by_others(*self._looks[0], load, passed) if self._crosses else 0.0
        rate = self._idle.look(Sample(passed, load, link))
        if self._idle.says and not self.gate.says:
            log.info("giving way", host=self._name, bytes_s=rate, why=self._idle.says)
        elif self.gate.says and not self._idle.says:
            log.info("no longer giving way", host=self._name)
        self.gate.give(rate, self._idle.says)
        return SAMPLE_S


def used_by_others(before: Load, passed_before: int, now: Load, passed: int) -> float:
    """Return how much of a link's busier direction others used between two looks, 0 to 1; 0 where it is unknown.

    What passed at the gate is taken off: of a comparison, which crosses no link, that is too much. So a link is given
    way on while bytes are copied over it.
    """
    seconds = now.at_s - before.at_s
    if before.link is None or now.link is None or seconds <= 0:
        return 0.0
    sent = now.link.sent_bytes - before.link.sent_bytes
    received = now.link.received_bytes - before.link.received_bytes
    others = max(0, max(sent, received) - (passed - passed_before))
    return min(1.0, others / (now.link.capacity_bytes_s * seconds))
