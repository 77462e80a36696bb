"""Limits that jobs share, and the weekly calendar that lowers them. Pure.

Times of a calendar are those on the wall clock of the machine that keeps the limits: `local` returns its local time at
an instant, as time.localtime does. So a change to summer time moves no window, and a set clock is simply another
instant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTE_S = 60
DAY_MIN = 24 * 60
LOOK_AHEAD_MIN = 8 * DAY_MIN
"""A calendar repeats each week; a day more, since summer time may have moved the end."""

Local = Callable[[float], time.struct_time]


class Scope(StrEnum):
    """The kind of thing whose budget jobs share."""

    HOST = "host"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Window:
    """A limit in bytes a second on these days between these times; 0: nothing moves."""

    days: tuple[int, ...]
    """On which it begins; 0 is Monday."""
    from_min: int
    """Minutes after midnight."""
    to_min: int
    """The first minute after it; not later than `from_min` means the next day."""
    limit_bytes_s: int

    def holds(self, at: time.struct_time) -> bool:
        minute, today, yesterday = at.tm_hour * 60 + at.tm_min, at.tm_wday, (at.tm_wday - 1) % 7
        if self.from_min < self.to_min:
            return today in self.days and self.from_min <= minute < self.to_min
        return (today in self.days and minute >= self.from_min) or (yesterday in self.days and minute < self.to_min)

    @property
    def when(self) -> str:
        """The window as it is typed, such as "mon-fri 08:00-18:00"."""
        return f"{_days_text(self.days)} {clock_text(self.from_min)}-{clock_text(self.to_min)}"


@dataclass(frozen=True, slots=True)
class SharedLimit:
    """Bytes a second that all jobs together may move on a host, or from and to a storage."""

    scope: Scope
    connect: str
    place: str
    """A folder of the storage, or its volume; empty for a host."""
    limit_bytes_s: int | None
    during: tuple[Window, ...] = ()
    """When it is lower than that."""

    @property
    def name(self) -> str:
        return f"{self.scope} {self.place or self.connect}"


@dataclass(frozen=True, slots=True)
class LimitView(SharedLimit):
    """A limit as the API shows it."""

    now_bytes_s: int | None = None
    """What holds at present: None is no limit, 0 lets nothing move."""
    until: str | None = None
    """ISO 8601, UTC: when something else begins to hold."""


@dataclass(frozen=True, slots=True)
class InForce:
    """Which limit holds at an instant, and until when."""

    limit_bytes_s: int | None
    """None is no limit, 0 lets nothing move."""
    until_s: float | None
    """Unix time; None: for ever."""


def limit_at(limit: SharedLimit, at_s: float, local: Local = time.localtime) -> int | None:
    """Return the lowest of the limit and its windows that hold at that Unix time, in bytes a second; None: no limit."""
    now = local(at_s)
    lower = [window.limit_bytes_s for window in limit.during if window.holds(now)]
    return min([*lower, *([] if limit.limit_bytes_s is None else [limit.limit_bytes_s])], default=None)


def in_force(limit: SharedLimit, at_s: float, local: Local = time.localtime) -> InForce:
    """Return the limit that holds at that Unix time, and when it ends.

    The end is found by looking at each minute of the week to come: 20 ms at most.
    """
    held = limit_at(limit, at_s, local)
    if not limit.during:
        return InForce(held, None)
    minute = int(at_s // MINUTE_S)
    for ahead in range(1, LOOK_AHEAD_MIN + 1):
        then_s = float((minute + ahead) * MINUTE_S)
        if limit_at(limit, then_s, local) != held:
            return InForce(held, then_s)
    return InForce(held, None)


def clock_text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _days_text(days: Sequence[int]) -> str:
    """Return days as text, such as "mon-fri,sun"; runs of three and more are shortened."""
    if len(set(days)) == len(DAYS):
        return "daily"
    runs: list[list[int]] = []
    for day in sorted(set(days)):
        if runs and day == runs[-1][-1] + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(_run_text(run) for run in runs)


def _run_text(run: Sequence[int]) -> str:
    if len(run) < 3:
        return ",".join(DAYS[day] for day in run)
    return f"{DAYS[run[0]]}-{DAYS[run[-1]]}"
