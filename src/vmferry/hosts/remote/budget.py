"""Follows a long call on another host: passes its progress on, and this side's orders and budget to it.

The budget is granted in advance, taken from the throttle here: so limits that jobs share, and priorities, hold over
all hosts. A call that this side no longer follows goes on by itself, at the limit sent last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vmferry.transfer import CHUNK, Watch

UNLIMITED_BYTES = 2 << 30
"""Bytes granted in advance where there is no limit: what moves in a quarter of a second, and more."""
GRANT_S = 0.25
"""Seconds for which a limit is granted in advance, and for which granting may delay reading on."""

Tell = Callable[[dict[str, Any]], None]


class ByteBudget:
    """The byte budget of one long call on another host, granted piece by piece from the throttle on this side.

    `tell` sends an order to that host. Everything runs in the caller's thread.
    """

    def __init__(self, watch: Watch, tell: Tell) -> None:
        self._watch = watch
        self._tell = tell
        self._granted: int | None = None
        self._told: tuple[int, int | None] | None = None
        self._told_at = 0.0

    def heard(self, line: dict[str, Any]) -> None:
        """Act on one line of progress from the host. Raises what watch.check() raises, and what `tell` raises."""
        moved = line.get("moved")
        if moved is not None:
            done, total, rate = moved
            self._watch.moved(int(done), int(total), float(rate))
        self._watch.check()
        taken = line.get("taken")
        if taken is not None:
            self._grant(int(taken))
            self._say()

    def _grant(self, taken: int) -> None:
        throttle = self._watch.throttle
        if self._granted is None:
            self._granted = taken
        until = time.monotonic() + GRANT_S
        while self._granted - taken < self._ahead() and time.monotonic() < until:
            piece = throttle.piece(CHUNK)
            throttle.take(piece, self._while_waiting)
            self._granted += piece

    def _ahead(self) -> int:
        limit = self._watch.throttle.tightest_bytes_s
        return UNLIMITED_BYTES if limit is None else max(1, int(limit * GRANT_S))

    def _while_waiting(self) -> None:
        self._watch.check()
        if time.monotonic() - self._told_at > GRANT_S:
            self._say()

    def _say(self) -> None:
        orders = (self._granted or 0, self._watch.throttle.tightest_bytes_s)
        if orders != self._told:
            self._told, self._told_at = orders, time.monotonic()
            self._tell({"granted": orders[0], "limit_bytes_s": orders[1]})
