"""Bytes and seconds as people write and read them. Pure; raises ValueError with what to write instead."""

from __future__ import annotations

import re
from decimal import Decimal

_BYTES = {"b": 1} | {
    unit: factor
    for power, letter in enumerate("kmgtp", start=1)
    for unit, factor in (
        (letter, 1024**power),
        (f"{letter}ib", 1024**power),
        (f"{letter}b", 1000**power),
    )
}
_BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "min": Decimal(60), "h": Decimal(3600)}
_DAY = {"d": Decimal(86400)}
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", re.ASCII)
_UNLIMITED = {"none", "unlimited"}
_LARGEST_BYTES = 2**63 - 1
_LONGEST_S = 86400
_TEN_YEARS_S = 3650 * 86400


def parse_bytes(text: str) -> int:
    """Parse a size: "200MiB", "1.5G" (1024s, as virsh and qemu-img), "10MB" (1000s), "4096B"."""
    number, unit = _split(text, "200MiB")
    if unit not in _BYTES:
        raise ValueError(f"{text!r} has no unit that is known: write it as 200MiB or 1.5G")
    size = number * _BYTES[unit]
    if not 1 <= size <= _LARGEST_BYTES:
        raise ValueError(f"{text!r} is not between 1 byte and 8 EiB")
    return int(size)


def parse_rate(text: str) -> int | None:
    """Parse a size per second, with or without "/s", into bytes per second; "none" or "unlimited" is None."""
    if text.strip().lower() in _UNLIMITED:
        return None
    try:
        return parse_bytes(text.strip().removesuffix("/s"))
    except ValueError as error:
        raise ValueError(f"{error}, or none for no limit") from error


def parse_link(text: str) -> int:
    """Parse what a link carries in each direction, "100mbit" or "2.5gbit", into bytes per second."""
    number, unit = _split(text, "1gbit")
    if unit not in _BITS:
        raise ValueError(f"{text!r} is no speed of a link: write it as 100mbit or 1gbit")
    speed = number * _BITS[unit] / 8
    if not 1 <= speed <= _LARGEST_BYTES:
        raise ValueError(f"{text!r} is not between 8bit and what a link can carry")
    return int(speed)


def parse_seconds(text: str) -> float:
    """Parse a time, "2s", "500ms", "1m" or "0.5h", into seconds: more than nothing, at most a day."""
    number, unit = _split(text, "2s")
    if unit not in _SECONDS:
        raise ValueError(f"{text!r} has no unit that is known: write it as 2s, 500ms or 1m")
    seconds = number * _SECONDS[unit]
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError(f"{text!r} is not between 1ms and 24h")
    return float(seconds)


def parse_days(text: str) -> float:
    """Parse a time, "0", "30s", "10m" or "14d", into seconds: nothing, or up to ten years."""
    if text.strip() == "0":
        return 0.0
    number, unit = _split(text, "14d")
    if unit not in _SECONDS | _DAY:
        raise ValueError(f"{text!r} has no unit that is known: write it as 30s, 10m, 2h or 14d")
    seconds = number * (_SECONDS | _DAY)[unit]
    if seconds > _TEN_YEARS_S:
        raise ValueError(f"{text!r} is more than ten years")
    return float(seconds)


def _split(text: str, example: str) -> tuple[Decimal, str]:
    found = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a number with a unit: write it as {example}")
    return Decimal(found[1]), found[2].lower()


def bytes_text(size: float) -> str:
    """Return a size as "0 B", "512 KiB" or "1.5 GiB": at most four figures."""
    if size < 1023.5:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 9.95:
            return f"{size:.1f} {unit}"
        if size < 1023.5:
            return f"{size:.0f} {unit}"
    return f"{size / 1024:.1f} PiB"


def rate_text(bytes_s: float | None) -> str:
    return "no limit" if bytes_s is None else f"{bytes_text(bytes_s)}/s"


def seconds_text(seconds: float) -> str:
    """Return a time as "40 ms", "1.2 s", "3 min 20 s", "2 h 5 min" or "14 days 0 h"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
