"""Lock that allows one worker for each state folder, also while that worker is frozen."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vmferry.errors import WorkerRunning


class WorkerLock:
    """The lock of a state folder; the kernel frees it when its holder is gone, and not before."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._pid = state / "worker.pid"
        self._held: int | None = None

    def take(self) -> None:
        """Take the lock. Raises WorkerRunning at once if another process has it."""
        descriptor = os.open(self._state / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            os.close(descriptor)
            raise WorkerRunning(pid=self._holder(), state=self._state) from taken
        self._held = descriptor
        fresh = self._pid.with_suffix(".pid.new")
        fresh.write_text(f"{os.getpid()}\n")
        fresh.replace(self._pid)

    def release(self) -> None:
        if self._held is not None:
            self._pid.unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def _holder(self) -> str:
        try:
            return self._pid.read_text().strip()
        except FileNotFoundError:
            return "just starting"
