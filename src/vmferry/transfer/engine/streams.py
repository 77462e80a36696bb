"""Several threads on one list of work: the first error stops them all and is the one that is raised."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from threading import BoundedSemaphore, Event, Lock
from typing import TypeVar

from vmferry.transfer.contract import Watch
from vmferry.transfer.engine.progress import ProgressCounter
from vmferry.transfer.ranges import CHUNK, Range, pieces

Work = TypeVar("Work")
TICK_S = 0.25
HUGE = 2 * 1024 * 1024


_further = BoundedSemaphore(48)
"""Lanes beyond the first of each transfer, in this process: 192 MiB of buffers. Ten transfers of four lanes need 30."""


@contextmanager
def _lanes(wanted: int) -> Iterator[int]:
    """Reserve lanes for a transfer and yield their number: one at least, as many as wanted while some are free."""
    further = 0
    while further < wanted - 1 and _further.acquire(blocking=False):
        further += 1
    try:
        yield 1 + further
    finally:
        for _ in range(further):
            _further.release()


class _Stopped(Exception):
    """Ends a stream because another stream failed."""


def _buffer() -> memoryview:
    """Allocate a buffer of one chunk in huge pages: the kernel then pins 2 pages for an O_DIRECT request, not 1024.

    It is private memory, since shared memory gets no huge pages by default; one huge page longer than needed, so that
    whole ones lie in it.
    """
    memory = mmap.mmap(-1, CHUNK + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    skipped = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE
    return memoryview(memory)[skipped : skipped + CHUNK]


class Lane:
    """What one stream works with: an aligned buffer of one chunk, and the checks before each piece."""

    def __init__(self, watch: Watch, progress: ProgressCounter, stopped: Event) -> None:
        self.buffer = _buffer()
        self.moved = 0  # bytes that this lane has counted as done
        self._progress = progress
        self._watch = watch
        self._stopped = stopped

    @property
    def stopped(self) -> bool:
        """Has another stream failed?"""
        return self._stopped.is_set()

    def check(self) -> None:
        """Call the watch's check, which may block or raise; raise if another stream failed."""
        if self.stopped:
            raise _Stopped
        self._watch.check()

    def pieces(self, whole: Range) -> Iterator[Range]:
        """Cut a range into pieces as small as the throttle wants them."""
        return pieces(whole, lambda: self._watch.throttle.piece(CHUNK))

    def admit(self, count: int) -> None:
        """Wait until the throttle lets `count` bytes pass."""
        self.check()
        self._watch.throttle.take(count, self.check)

    def count(self, moved: int) -> None:
        """Add bytes to this lane's count and to the progress."""
        self.moved += moved
        self._progress.add(moved)

    def settle(self, moved: int) -> None:
        """Correct this lane's count, and the progress with it, to `moved` bytes."""
        self.count(moved - self.moved)


class Streams:
    """Runs do(work, lane) for each piece of work, on several threads.

    Meanwhile the calling thread reports progress to the watch. When anything raises, the others stop before
    their next piece; the call returns when all have stopped, so a paused watch holds it back.
    """

    def __init__(self, watch: Watch, progress: ProgressCounter, count: int) -> None:
        self._watch = watch
        self._progress = progress
        self._count = max(1, count)
        self._stopped = Event()
        self._lock = Lock()
        self._errors: list[BaseException] = []

    def run(self, work: Iterable[Work], do: Callable[[Work, Lane], None]) -> None:
        """Do all of the work, or raise the first error."""
        todo = iter(work)
        with _lanes(self._count) as count, ThreadPoolExecutor(count, thread_name_prefix="transfer") as pool:
            try:
                lanes = [pool.submit(self._stream, todo, do) for _ in range(count)]
                for lane in lanes:
                    lane.add_done_callback(self._note)
                self._attend(lanes)
            finally:
                self._stopped.set()
        if self._errors:
            raise self._errors[0]

    def _stream(self, todo: Iterator[Work], do: Callable[[Work, Lane], None]) -> None:
        lane = Lane(self._watch, self._progress, self._stopped)
        while True:
            lane.check()
            with self._lock:
                work = next(todo, None)
            if work is None:
                return
            do(work, lane)

    def _note(self, lane: Future[None]) -> None:
        """Record the error of a stream that ended, and stop the others; called in that stream's thread."""
        error = lane.exception()
        if error is not None and not isinstance(error, _Stopped):
            self._errors.append(error)
            self._stopped.set()

    def _attend(self, lanes: list[Future[None]]) -> None:
        """Report progress and call the watch's check until the streams are done."""
        while wait(lanes, TICK_S, FIRST_EXCEPTION).not_done and not self._stopped.is_set():
            self._watch.moved(*self._progress.look())
            self._watch.check()
        if not self._errors:
            self._watch.moved(*self._progress.look())
