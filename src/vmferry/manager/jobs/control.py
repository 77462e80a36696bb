"""A running job's control: its steps report there, and hear of cancel and of new limits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition

from vmferry.errors import Cancelled, Suspended
from vmferry.manager.store import Store
from vmferry.migration.facts import Fact, JobFacts
from vmferry.model import DiskProgress, FencingToken, JobState, Phase, Plan, Progress
from vmferry.transfer import Throttle

WINDOW_S = 10.0
"""Rate and time left come from the bytes of so many seconds."""


class Stopped(BaseException):
    """Raised when this process no longer acts for the job: it records nothing more, and another process goes on.

    Not an Exception, so that no step takes it for a failure of its own.
    """


@dataclass
class JobCommands:
    """What people want of one running job, changed by their requests and read by its steps."""

    throttle: Throttle
    max_pause_s: float
    cancel: bool = False
    retry: bool = False
    suspend: bool = False
    stop: bool = False
    changed: Condition = field(default_factory=Condition)

    def set(self, **orders: object) -> None:
        """Change some of the orders, and wake all that wait for a change."""
        with self.changed:
            for name, order in orders.items():
                setattr(self, name, order)
            self.changed.notify_all()

    def set_limit(self, limit_bytes_s: int | None, rank: int) -> None:
        self.throttle.set_limit(limit_bytes_s)
        self.throttle.rank = rank
        with self.changed:
            self.changed.notify_all()


class ProgressBoard:
    """One job's progress, as a watching person sees it. Calls `changed` after each change."""

    def __init__(self, plan: Plan, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._lock = Condition()
        disks = tuple(DiskProgress(d.target, 0, sum(image.data_bytes for image in d.images)) for d in plan.disks)
        self._progress = Progress(steps=len(plan.steps), disks=disks)
        self._samples: deque[tuple[float, int]] = deque()
        self._does = ""
        """What it was at before it had to wait for a host; empty while it does not."""

    @property
    def progress(self) -> Progress:
        return self._progress

    def show(self, **shown: object) -> None:
        with self._lock:
            self._does = "" if "now" in shown else self._does
            self._progress = replace(self._progress, **shown)  # type: ignore[arg-type]
        self._changed()

    def waits(self, why: str) -> None:
        """Show why nothing goes on, until something does."""
        with self._lock:
            self._does = self._does or self._progress.now
            self._progress = replace(self._progress, now=why)
        self._changed()

    def disk(self, seen: DiskProgress, held: str = "") -> None:
        """Show how far a disk is; `held`: why it is no further."""
        with self._lock:
            disks = {disk.target: disk for disk in self._progress.disks} | {seen.target: seen}
            rate, left = self._look(disks)
            now, self._does = self._does or self._progress.now, ""
            shown = replace(self._progress, now=now, rate_bytes_s=rate, seconds_left=left, held=held)
            self._progress = replace(shown, disks=tuple(disks.values()))
        self._changed()

    def _look(self, disks: Mapping[str, DiskProgress]) -> tuple[float, float | None]:
        """Return (bytes a second in the last WINDOW_S, seconds left at that rate; None while nothing moves)."""
        done = sum(disk.done_bytes for disk in disks.values())
        total = sum(disk.total_bytes for disk in disks.values())
        now = time.monotonic()
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()  # another step counts anew
        self._samples.append((now, done))
        while now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        return rate, max(0, total - done) / rate if rate > 0 else None


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """A job's facts, kept in the store."""

    store: Store
    token: FencingToken
    known: dict[str, Fact]

    def get(self, name: str) -> Fact:
        return self.known.get(name)

    def put(self, name: str, value: Fact) -> None:
        """Store a fact; it is durable when this returns. Raises Superseded."""
        if name not in self.known or self.known[name] != value:
            self.store.put_fact(self.token, name, value)
            self.known[name] = value

    def all(self) -> Mapping[str, Fact]:
        return dict(self.known)

    def note_left(self, path: Path) -> None:
        """Record a path that may still lie on a host that was declared lost. Raises Superseded."""
        facts = JobFacts(self)
        facts.left = sorted({*(facts.left or ()), str(path)})


@dataclass
class JobControl:
    """The control of a job that runs in this process."""

    store: Store
    token: FencingToken
    orders: JobCommands
    board: ProgressBoard
    hears_cancel: bool = True
    hears_suspend: bool = False
    throttle: Throttle = field(init=False)

    def __post_init__(self) -> None:
        self.throttle = self.orders.throttle

    @property
    def max_pause_s(self) -> float:
        return self.orders.max_pause_s

    def check(self) -> None:
        """Raise Stopped, Cancelled or Suspended if that was ordered.

        The orders are flags in memory, so that this can be called before every piece of data.
        """
        if self.orders.stop:
            raise Stopped
        if self.hears_cancel and self.orders.cancel:
            raise Cancelled
        if self._stands():
            raise Suspended

    def wait(self, seconds: float) -> None:
        self.check()
        with self.orders.changed:
            if not (self.orders.stop or (self.hears_cancel and self.orders.cancel) or self._stands()):
                self.orders.changed.wait(seconds)
        self.check()

    def wait_for_retry(self) -> None:
        """Block until an operator asks to go on with a stuck job. Raises Stopped."""
        with self.orders.changed:
            self.orders.changed.wait_for(lambda: self.orders.retry or self.orders.stop)
        self.uncancellable().check()

    def disk(self, progress: DiskProgress, rate_bytes_s: float) -> None:
        self.board.disk(progress, self.throttle.says)

    def says(self, now: str) -> None:
        self.board.show(now=now)

    def waits(self, why: str) -> None:
        self.board.waits(why)

    def forecast(self, pause_s: float) -> None:
        self.board.show(pause_forecast_s=pause_s)

    def phase(self, phase: Phase) -> None:
        self.store.put_phase(self.token, phase)

    def state(self, state: JobState, why: str = "") -> None:
        self.store.advance(self.token, state, why)
        self.board.show()

    @property
    def suspended(self) -> bool:
        return self.orders.suspend

    def suspendable(self) -> JobControl:
        return replace(self, hears_suspend=True)

    def uncancellable(self) -> JobControl:
        return replace(self, hears_cancel=False, hears_suspend=False)

    def _stands(self) -> bool:
        return self.hears_suspend and self.orders.suspend
