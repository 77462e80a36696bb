"""The jobs that run in this process: orders to them, their progress, and who waits to see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from threading import Condition

from vmferry.manager.jobs.control import JobCommands, JobControl, ProgressBoard, Stopped
from vmferry.manager.limits.shared import Limits
from vmferry.manager.store import Row, Store
from vmferry.manager.store.records import JobHeartbeat
from vmferry.model import FencingToken, JobState, Progress
from vmferry.transfer import Throttle


class ActiveJobs:
    """Orders and progress of each job that this process acts for. May be called from any thread."""

    def __init__(self) -> None:
        self.orders: dict[str, JobCommands] = {}
        self._boards: dict[str, ProgressBoard] = {}
        self._tokens: dict[str, FencingToken] = {}
        self._versions: Counter[str] = Counter()
        self._changed = Condition()
        self._synced: dict[str, JobHeartbeat] = {}
        self._saved: dict[str, Progress] = {}

    # -- controls

    def open(self, store: Store, token: FencingToken, limits: Limits) -> JobControl:
        """Return a new control of a job; a control that an earlier epoch of the job left is stopped.

        Raises Stopped for an epoch that is past: who ended it found no control to stop.
        """
        with self._changed:
            row = store.row(token.job)  # under the lock: no order may come between row and orders
            if row.epoch != token.epoch:
                raise Stopped
            orders = JobCommands(
                Throttle(row.limit_bytes_s, above=limits.of(row), rank=row.priority),
                row.max_pause_s,
                cancel=row.cancel_asked,
                retry=row.retry_asked,
                suspend=row.suspend_asked,
            )
            before = self.orders.get(row.id)
            self.orders[row.id], self._tokens[row.id] = orders, token
            board = self._boards[row.id] = ProgressBoard(row.plan, lambda: self.bump(row.id))
        if before is not None:
            before.set(stop=True)
        return JobControl(store, token, orders, board)

    def stop(self, job: str) -> None:
        """Have this process act for a job no more, if it does."""
        with self._changed:
            orders = self.orders.get(job)
        if orders is not None:
            orders.set(stop=True)

    def stop_all(self) -> None:
        """Have this process act for no job any more: each walk leaves its job as it is, at its next check."""
        for orders in list(self.orders.values()):
            orders.set(stop=True)

    def tell(self, row: Row | JobHeartbeat) -> None:
        """Pass a job's present limits, priority and requests on to it, if it runs here."""
        with self._changed:
            orders = self.orders.get(row.id)
        if orders is not None:
            orders.set_limit(row.limit_bytes_s, row.priority)
            orders.set(
                max_pause_s=row.max_pause_s,
                cancel=row.cancel_asked,
                retry=row.retry_asked,
                suspend=row.suspend_asked,
            )

    def progress(self, row: Row, manager: str) -> Progress:
        """Return a job's progress: as it is here, or for another manager's job as that manager recorded it."""
        board = self._boards.get(row.id)
        if board is not None and row.manager == manager:
            return board.progress
        return row.progress or Progress(steps=len(row.plan.steps))

    # -- who waits to see it

    def bump(self, job: str) -> None:
        with self._changed:
            self._versions[job] += 1
            self._changed.notify_all()

    def wait(self, job: str, after: int, timeout_s: float, enough: Callable[[], bool]) -> int:
        """Wait until the job's version differs from `after`, or `enough()`, at most `timeout_s`; return the version."""
        with self._changed:
            self._changed.wait_for(lambda: self._versions[job] + 1 != after or enough(), timeout_s)
            return self._versions[job] + 1

    def wait_for_any(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait(timeout_s)

    # -- what is written by other managers, and for them

    def sync(self, pulses: Iterable[JobHeartbeat], manager: str) -> None:
        """Pass on orders that came in at other managers, and wake watchers of jobs that changed there."""
        now = {pulse.id: pulse for pulse in pulses}
        before, self._synced = self._synced, now
        for job in before.keys() | now.keys():
            old, new = before.get(job), now.get(job)
            if new is not None and new.manager == manager:
                if old is None or replace(old, progress=new.progress) != new:  # its progress is from here
                    self.tell(new)
                    self.bump(job)
            elif old != new:
                self.bump(job)

    def unsaved_progress(self) -> list[tuple[FencingToken, Progress]]:
        """Return the progress that was not recorded yet, of jobs that run here; each is returned once."""
        seen = {job: board.progress for job, board in list(self._boards.items())}
        fresh = [job for job, progress in seen.items() if self._saved.get(job) != progress]
        self._saved = seen
        return [(self._tokens[job], seen[job]) for job in fresh]


def waits(pulses: Iterable[JobHeartbeat]) -> bool:
    """Tell whether one of these jobs waits for its turn."""
    return any(pulse.state == JobState.QUEUED for pulse in pulses)
