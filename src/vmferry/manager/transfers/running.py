"""A transfer at work in this process: its progress, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from threading import Lock

from vmferry.transfer import Throttle
from vmferry.transfer.standalone import CopyResult, DiskCopy


class Halt(Enum):
    """Why a transfer stops before its end."""

    SUSPEND = "suspended"
    CANCEL = "cancelled"
    MAKE_WAY = "makes way for a higher priority"
    CLOSE = "the worker leaves"


class Halted(Exception):
    """Raised into the copy loop to stop a transfer; all that is bookmarked stays."""


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer is, in one phase."""

    phase: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_s: float = 0.0
    held: str = ""
    """Why it is no further, in words."""


class RunningTransfer:
    """Carries one transfer. `moving` is called once, when data begins to move; `changed` at every progress."""

    def __init__(self, throttle: Throttle, moving: Callable[[], None], changed: Callable[[], None]) -> None:
        self.throttle = throttle
        self.course = TransferProgress()
        self.far_bytes = 0
        """Bytes copied, then with those compared: only ever grows while there is progress."""
        self.halted: Halt | None = None
        self._moving = moving
        self._changed = changed
        self._begun = False
        self._before_bytes = 0  # of the phases that are over
        self._lock = Lock()

    def halt(self, why: Halt) -> None:
        """Have the transfer stop before its next piece; the first reason counts, but a cancel outweighs all."""
        if self.halted is None or why is Halt.CANCEL:
            self.halted = why

    def carry(self, carriage: DiskCopy, streams: int) -> CopyResult:
        """Copy and compare the transfer. Raises Halted, and what DiskCopy.carry raises."""
        return carriage.carry(_Phase(self, "copying"), _Phase(self, "comparing"), streams)

    def check(self) -> None:
        """Raise Halted if the transfer is to stop."""
        if self.halted is not None:
            raise Halted

    def moved(self, course: TransferProgress) -> None:
        with self._lock:
            first, self._begun = not self._begun, True
            if course.phase != self.course.phase:
                self._before_bytes += self.course.total_bytes
            self.course = course
            self.far_bytes = max(self.far_bytes, self._before_bytes + course.done_bytes)
        if first:
            self._moving()
        self._changed()


class _Phase:
    """The watch of one phase of a transfer, as the transfer service wants it."""

    def __init__(self, carrying: RunningTransfer, name: str) -> None:
        self._carrying = carrying
        self._name = name

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self._carrying.moved(TransferProgress(self._name, done_bytes, total_bytes, rate_bytes_s, self.throttle.says))

    def check(self) -> None:
        self._carrying.check()

    @property
    def throttle(self) -> Throttle:
        return self._carrying.throttle
