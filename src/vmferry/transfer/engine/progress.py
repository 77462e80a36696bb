"""Counts bytes done and the recent rate, which the watch is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

WINDOW_S = 5.0


class ProgressCounter:
    """Counts bytes from many threads; the rate comes from the last WINDOW_S seconds."""

    def __init__(self, total_bytes: int, clock: Callable[[], float]) -> None:
        self.total_bytes = total_bytes
        self._done = 0
        self._lock = Lock()
        self._clock = clock
        self._seen = deque([(clock(), 0)])

    def add(self, count: int, total: int = 0) -> None:
        """Add to the bytes done, and to the total of bytes to do."""
        with self._lock:
            self._done += count
            self.total_bytes += total

    def look(self) -> tuple[int, int, float]:
        """Return bytes done, bytes to do, and bytes per second over the last WINDOW_S seconds."""
        now = self._clock()
        with self._lock:
            done = self._done
            self._seen.append((now, done))
            while len(self._seen) > 2 and self._seen[0][0] < now - WINDOW_S:
                self._seen.popleft()
            then, before = self._seen[0]
        return done, self.total_bytes, (done - before) / (now - then) if now > then else 0.0
