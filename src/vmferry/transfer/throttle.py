"""A budget of bytes per second, shared fairly and changeable at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from threading import Condition
from typing import Protocol

from vmferry.transfer.ranges import BLOCK

BURST_S = 0.25  # seconds' worth that may pass at once after an idle time
BUSY_S = 1.0  # who has moved bytes so recently is at work
TRICKLE_S = 2.0  # a piece passes so often whatever goes before it
MIN_WAIT_S = 0.001  # less would spin on rounding errors
WAKE_S = 0.25  # a waiter looks for cancel, pause and a new limit at least this often
SLOWED_S = 0.1  # who waits so long for a piece is slower than it could be; a busy machine alone keeps it less


class Clock(Protocol):
    """A monotonic clock that can wait."""

    def now(self) -> float:
        """Return seconds that never go backward."""

    def wait(self, change: Condition, seconds: float) -> None:
        """Wait for that many seconds, or until the condition, which the caller holds, is notified."""


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, change: Condition, seconds: float) -> None:
        change.wait(seconds)


class Throttle:
    """A token bucket: first come, first served, never more than BURST_S worth of limit at once.

    A request larger than that goes when the bucket is full and leaves it in debt, so the rate holds anyway.
    What passes has to pass the throttles `above` as well, which others may share: a host's, a storage's. There
    a lower `rank` goes before a higher one: while it is at work the others trickle. Equals take turns.
    """

    def __init__(
        self,
        limit_bytes_s: int | None = None,
        clock: Clock | None = None,
        above: Sequence[Throttle] = (),
        rank: int = 0,
    ) -> None:
        self.rank = rank
        self.insists = False
        """Gives no way to guests, whatever its rank: what it moves has to be quicker than what they write."""
        self.slowed = False
        """Has any piece had to wait?"""
        self._closed = ""
        self._clock = clock or SystemClock()
        self._above = tuple(above)
        self._passed_at: dict[int, float] = {}  # rank to when its newest piece passed
        self._change = Condition()
        self._numbers = count()
        self._waiting: set[int] = set()
        self._filled_at = self._clock.now()
        self._tokens = 0.0
        self._limit = _valid(limit_bytes_s)

    @property
    def limit_bytes_s(self) -> int | None:
        return self._limit

    @property
    def tightest_bytes_s(self) -> int | None:
        """The lowest limit here and at those above that work has to pass, in bytes per second; None for no limit."""
        limits = [self._limit, *(throttle.tightest_bytes_s for throttle in self._met)]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def ordered_bytes_s(self) -> int | None:
        """The lowest limit that a person has set, whatever the guests leave, in bytes per second; None for no limit."""
        limits = [self._limit, *(throttle.ordered_bytes_s for throttle in self._above)]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def closed(self) -> str:
        """Why this throttle, or one above, lets nothing pass; empty if none is closed."""
        return self._closed or next(filter(None, (throttle.closed for throttle in self._above)), "")

    @property
    def says(self) -> str:
        """Why less passes than could, in words; empty when only known limits hold."""
        return self.closed or next(filter(None, (throttle.says for throttle in self._met)), "")

    @property
    def gives_way(self) -> bool:
        """Is this throttle held back for the sake of guests at present?"""
        return any(throttle.gives_way for throttle in self._met)

    def close(self, why: str) -> None:
        """Let nothing pass for the reason `why`, until called with an empty text; waiting calls still run `check`."""
        with self._change:
            self._closed = why
            self._change.notify_all()

    def set_limit(self, limit_bytes_s: int | None) -> None:
        """Change the limit to this many bytes per second, None for no limit, and wake the waiting threads."""
        with self._change:
            self._fill()
            self._limit = _valid(limit_bytes_s)
            self._tokens = 0.0 if self._limit is None else min(self._tokens, self._burst())
            self._change.notify_all()

    def piece(self, most: int) -> int:
        """Return how many bytes to take at once: whole blocks, at most a burst, so that streams alternate."""
        limit = self.tightest_bytes_s
        if limit is None:
            return most
        return min(most, max(BLOCK, int(limit * BURST_S) // BLOCK * BLOCK))

    def take(self, wanted: int, check: Callable[[], None]) -> None:
        """Wait until `wanted` bytes may move. What `check` raises ends the wait; nothing is taken where it waited."""
        began = self._clock.now()
        if self._limit is not None or self._closed:
            number = next(self._numbers)
            while not self._granted(number, wanted):
                check()
        for throttle in self._met:
            while not throttle.gave_way(self.rank):
                check()
            throttle.take(wanted, check)
        self.slowed = self.slowed or self._clock.now() - began > SLOWED_S

    def moved(self, count: int) -> None:
        """Count bytes that another process or host moved under tightest_bytes_s without calling take()."""
        for throttle in self._met:
            throttle.moved(count)

    def meets(self, rank: int) -> bool:
        """Does a transfer of this rank have to pass this throttle?"""
        return True

    @property
    def _met(self) -> list[Throttle]:
        """The throttles above that this one has to pass."""
        return [throttle for throttle in self._above if throttle.meets(0 if self.insists else self.rank)]

    def gave_way(self, rank: int) -> bool:
        """Wait at most WAKE_S for work that goes before this rank. Return True when it is this rank's turn."""
        with self._change:
            until = self._clock.now() + WAKE_S
            while (now := self._clock.now()) < until:
                before = [at for other, at in self._passed_at.items() if other < rank]
                if all(now - at >= BUSY_S for at in before) or now - self._passed_at.get(rank, -TRICKLE_S) >= TRICKLE_S:
                    self._passed_at[rank] = now
                    return True
                self._clock.wait(self._change, until - now)
        return False

    def _granted(self, number: int, wanted: int) -> bool:
        """Queue for `wanted` bytes for at most WAKE_S and take them. Return False when the time is over.

        Out of the queue nobody waits behind this thread, so the caller's check may block.
        """
        with self._change:
            self._waiting.add(number)
            try:
                until = self._clock.now() + WAKE_S
                while (needed := self._lacking_s(number, wanted)) > 0:
                    left = until - self._clock.now()
                    if left <= 0:
                        return False
                    self._clock.wait(self._change, max(MIN_WAIT_S, min(needed, left)))
                if self._limit is not None:
                    self._tokens -= wanted
                self._change.notify_all()
                return True
            finally:
                self._waiting.discard(number)

    def _lacking_s(self, number: int, wanted: int) -> float:
        """Return the seconds until this waiter may look again, 0 when it may go."""
        if self._closed:
            return WAKE_S
        if self._limit is None:
            return 0.0
        if number != min(self._waiting):
            return WAKE_S
        self._fill()
        return (min(wanted, self._burst()) - self._tokens) / self._limit

    def _burst(self) -> float:
        return (self._limit or 0) * BURST_S

    def _fill(self) -> None:
        now = self._clock.now()
        if self._limit is not None:
            self._tokens = min(self._burst(), self._tokens + (now - self._filled_at) * self._limit)
        self._filled_at = now


class Gate(Throttle):
    """Limits background work on one host to what its guests leave; only foreground work does not pass it.

    `asked` is called whenever work wants to pass, so that the guests' load can be measured on demand.
    """

    def __init__(self, asked: Callable[[], None], clock: Clock | None = None) -> None:
        super().__init__(None, clock)
        self.passed_bytes = 0
        self._asked = asked
        self._why = ""

    def give(self, limit_bytes_s: int | None, why: str) -> None:
        """Change the limit to so many bytes per second, None for no limit; `why` explains it in words."""
        self._why = why
        if limit_bytes_s != self.limit_bytes_s:
            self.set_limit(limit_bytes_s)

    @property
    def ordered_bytes_s(self) -> int | None:
        return None

    @property
    def gives_way(self) -> bool:
        return self.limit_bytes_s is not None

    @property
    def says(self) -> str:
        return self.closed or self._why

    def meets(self, rank: int) -> bool:
        return rank > 0

    def take(self, wanted: int, check: Callable[[], None]) -> None:
        self._asked()
        super().take(wanted, check)
        self._count(wanted)

    def moved(self, count: int) -> None:
        self._asked()
        self._count(count)

    def _count(self, passed: int) -> None:
        with self._change:
            self.passed_bytes += passed


def _valid(limit_bytes_s: int | None) -> int | None:
    if limit_bytes_s is not None and limit_bytes_s < 1:
        raise ValueError("a limit is at least 1 byte per second, or None: to stop, pause")
    return limit_bytes_s
