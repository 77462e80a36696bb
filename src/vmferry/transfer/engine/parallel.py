"""Several transfers in parallel, which their watch sees as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vmferry.errors import Cancelled
from vmferry.transfer.contract import Watch
from vmferry.transfer.engine.progress import ProgressCounter
from vmferry.transfer.engine.streams import Lane, Streams
from vmferry.transfer.throttle import Throttle

T = TypeVar("T")


def in_parallel(acts: Sequence[Callable[[Watch], T]], watch: Watch) -> list[T]:
    """Call all functions at once, each with a watch of its own, and return their results in order.

    The first error stops the others, and is raised when all have ended.
    """
    progress = ProgressCounter(0, time.monotonic)
    ends: dict[int, T] = {}

    def act(numbered: tuple[int, Callable[[Watch], T]], lane: Lane) -> None:
        number, one = numbered
        ends[number] = one(_Share(watch, progress, lane))

    Streams(watch, progress, len(acts)).run(enumerate(acts), act)
    return [ends[number] for number in range(len(acts))]


class _Share:
    """The watch of one of several parallel transfers, which all report to one. Implements Watch."""

    def __init__(self, watch: Watch, progress: ProgressCounter, lane: Lane) -> None:
        self._watch = watch
        self._progress = progress
        self._lane = lane
        self._done = self._total = 0

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self._progress.add(done_bytes - self._done, total_bytes - self._total)
        self._done, self._total = done_bytes, total_bytes

    def check(self) -> None:
        if self._lane.stopped:
            raise Cancelled
        self._watch.check()

    @property
    def throttle(self) -> Throttle:
        return self._watch.throttle
