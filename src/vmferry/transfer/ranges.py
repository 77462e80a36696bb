"""Byte ranges, chunks and blocks: pure arithmetic.

A file is cut into chunks (the unit of bookmarks and of repair), a chunk into blocks (the unit in which zeros
are recognised). Ranges are half open, sorted and do not touch unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

CHUNK = 4 * 1024 * 1024
BLOCK = 64 * 1024


class Range(NamedTuple):
    """A half open range of bytes: from `start` up to, but without, `end`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk and the data ranges in it; no range means that all of it is a hole."""

    index: int
    data: tuple[Range, ...]


def total(ranges: Iterable[Range]) -> int:
    """Return the number of bytes in all the ranges together."""
    return sum(r.length for r in ranges)


def align(ranges: Iterable[Range], unit: int, size: int) -> Iterator[Range]:
    """Widen each range to multiples of unit (the last to size at most) and join those that then touch."""
    start = end = -1
    for r in ranges:
        low, high = r.start // unit * unit, min(-(-r.end // unit) * unit, size)
        if low > end or end < 0:
            if end > start:
                yield Range(start, end)
            start = low
        end = max(end, high)
    if end > start:
        yield Range(start, end)


def clip(ranges: Iterable[Range], within: Range) -> Iterator[Range]:
    """Yield the parts of the ranges that lie within `within`."""
    for r in ranges:
        start, end = max(r.start, within.start), min(r.end, within.end)
        if start < end:
            yield Range(start, end)


def by_chunk(ranges: Iterable[Range], chunk: int = CHUNK) -> Iterator[Chunk]:
    """Cut the ranges at chunk borders and gather them: the chunks that hold data, in order."""
    index, held = -1, list[Range]()
    for r in ranges:
        start = r.start
        while start < r.end:
            if start // chunk != index:
                if held:
                    yield Chunk(index, tuple(held))
                index, held = start // chunk, []
            end = min(r.end, (index + 1) * chunk)
            held.append(Range(start, end))
            start = end
    if held:
        yield Chunk(index, tuple(held))


def chunk_range(index: int, size: int) -> Range:
    """Return the range of a chunk's bytes in a file of `size` bytes."""
    return Range(index * CHUNK, min((index + 1) * CHUNK, size))


def pieces(whole: Range, most: Callable[[], int]) -> Iterator[Range]:
    """Cut a range into pieces of at most most() bytes, called before each, so that a changed limit counts at once."""
    start = whole.start
    while start < whole.end:
        end = min(start + most(), whole.end)
        yield Range(start, end)
        start = end


def common(a: Iterable[Range], b: Iterable[Range]) -> Iterator[Range]:
    """Yield the ranges of bytes that lie in both `a` and `b`."""
    left, right = iter(a), iter(b)
    x, y = next(left, None), next(right, None)
    while x is not None and y is not None:
        start, end = max(x.start, y.start), min(x.end, y.end)
        if start < end:
            yield Range(start, end)
        if x.end <= y.end:
            x = next(left, None)
        else:
            y = next(right, None)


def gaps(ranges: Iterable[Range], within: Range) -> Iterator[Range]:
    """Yield the parts of `within` that no range covers; the ranges may touch."""
    start = within.start
    for r in ranges:
        if r.start > start:
            yield Range(start, min(r.start, within.end))
        start = max(start, r.end)
    if start < within.end:
        yield Range(start, within.end)
