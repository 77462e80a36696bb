"""An endpoint in memory, for tests: both a source and a destination, which can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock

from vmferry.transfer.endpoints.interface import Can
from vmferry.transfer.ranges import BLOCK, Range, clip

Trouble = Callable[[str, int], None]


def no_trouble(action: str, offset: int) -> None:
    """Let every call pass: the default of InMemoryDisk, which fails nowhere."""


class InMemoryDisk:
    """Bytes with holes; trouble(action, offset) is called before each action and may raise."""

    def __init__(self, content: bytes, data: list[Range] | None = None, trouble: Trouble = no_trouble) -> None:
        self.content = bytearray(content)
        self.data = [Range(0, len(content))] if data is None else data
        self.written: list[Range] = []
        self.zeroed: list[Range] = []
        self.flushes = 0
        self.name = "memory"
        self._trouble = trouble
        self._lock = Lock()

    @property
    def can(self) -> Can:
        return Can.EXTENTS | Can.ZERO | Can.SHARE | Can.FLUSH

    @property
    def size(self) -> int:
        return len(self.content)

    def extents(self, within: Range) -> Iterator[Range]:
        return clip(self.data, within)

    def read(self, offset: int, into: memoryview) -> None:
        self._trouble("read", offset)
        into[:] = self.content[offset : offset + len(into)]

    def read_back(self, offset: int, into: memoryview) -> None:
        self._trouble("read_back", offset)
        into[:] = self.content[offset : offset + len(into)]

    def write(self, offset: int, content: memoryview) -> None:
        self._trouble("write", offset)
        with self._lock:
            self.content[offset : offset + len(content)] = content
            self.written.append(Range(offset, offset + len(content)))
            self._allocate(offset, offset + len(content))

    def zero(self, where: Range) -> None:
        self._trouble("zero", where.start)
        with self._lock:
            self.content[where.start : where.end] = bytes(where.length)
            self.zeroed.append(where)

    def flush(self) -> None:
        self._trouble("flush", 0)
        self.flushes += 1

    def _allocate(self, start: int, end: int) -> None:
        """Record the bytes from `start` to `end` as data, in whole blocks."""
        blocks = {b for r in self.data for b in range(r.start // BLOCK, -(-r.end // BLOCK))}
        blocks |= set(range(start // BLOCK, -(-end // BLOCK)))
        self.data = [Range(b * BLOCK, min((b + 1) * BLOCK, self.size)) for b in sorted(blocks)]
