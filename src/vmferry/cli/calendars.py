"""Windows of a weekly calendar as people write and read them. Pure; raises ValueError with what to write instead."""

from __future__ import annotations

import re

from vmferry.cli.render.sizes import parse_bytes, rate_text
from vmferry.model import Window
from vmferry.model.limits import DAY_MIN, DAYS

EXAMPLE = "mon-fri 08:00-18:00=20MiB"
_WINDOW = re.compile(r"([a-z,-]+)\s+(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})\s*=\s*(\S+)", re.ASCII)


def parse_window(text: str) -> Window:
    """Parse "mon-fri 08:00-18:00=20MiB", "sat,sun 00:00-24:00=0", "daily 22:00-06:00=5MiB" (until the next morning)."""
    found = _WINDOW.fullmatch(text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is no span of a week with a rate: write it as '{EXAMPLE}'")
    days, from_hour, from_minute, to_hour, to_minute, rate = found.groups()
    from_min, to_min = _minute(from_hour, from_minute), _minute(to_hour, to_minute)
    if from_min == DAY_MIN:
        raise ValueError(f"{text!r} begins at 24:00: write 00:00, and the next day")
    if from_min == to_min:
        raise ValueError(f"{text!r} ends as it begins: a whole day is 00:00-24:00")
    return Window(_days(days), from_min, to_min, 0 if rate == "0" else _rate(rate))


def window_text(window: Window) -> str:
    """Return a window in words: "mon-fri 08:00-18:00 20 MiB/s"."""
    rate = rate_text(window.limit_bytes_s) if window.limit_bytes_s else "nothing moves"
    return f"{window.when} {rate}"


def _rate(text: str) -> int:
    try:
        return parse_bytes(text.removesuffix("/s"))
    except ValueError as error:
        raise ValueError(f"{error}; or 0, and nothing moves") from error


def _minute(hour: str, minute: str) -> int:
    found = int(hour) * 60 + int(minute)
    if int(minute) > 59 or found > DAY_MIN:
        raise ValueError(f"{hour}:{minute} is no time of a day: 00:00 to 24:00")
    return found


def _days(text: str) -> tuple[int, ...]:
    if text == "daily":
        return tuple(range(len(DAYS)))
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!r} is no day: write {', '.join(DAYS)}, a range as mon-fri, or daily")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % len(DAYS) for day in range(begin, end + 1 if end >= begin else end + len(DAYS) + 1)}
    return tuple(sorted(found))
