"""The Medium protocol for open storage, and adapters that make a source or destination of the copy loop from it.

A medium raises OSError and knows nothing of sources and destinations; a device and an NBD connection are media.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmferry.transfer.endpoints.file import reading, writing
from vmferry.transfer.endpoints.interface import Can
from vmferry.transfer.ranges import Range


class Medium(Protocol):
    """Open storage. Every method raises OSError, may be called from several threads, and ends in bounded time."""

    @property
    def can(self) -> Can: ...

    @property
    def size(self) -> int: ...

    def extents(self, within: Range) -> Iterator[Range]:
        """Yield the ranges that may hold data, in order; all else reads as zero."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of `into` from the storage, not from a cache of this process."""

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of `content`, not necessarily durably."""

    def zero(self, where: Range) -> None:
        """Make the range read as zero, as a hole if it can."""

    def flush(self) -> None:
        """Make all that was written durable."""


class MediumSource:
    """A medium adapted to be the source of a copy; its OSErrors become source errors."""

    def __init__(self, medium: Medium, name: str) -> None:
        self._medium = medium
        self.name = name

    @property
    def can(self) -> Can:
        return self._medium.can

    @property
    def size(self) -> int:
        return self._medium.size

    def extents(self, within: Range) -> Iterator[Range]:
        with reading(self.name, within.start):
            yield from self._medium.extents(within)

    def read(self, offset: int, into: memoryview) -> None:
        with reading(self.name, offset):
            self._medium.read(offset, into)


class MediumDestination:
    """A medium adapted to be the destination of a copy; only its first `size` bytes are used."""

    def __init__(self, medium: Medium, name: str, size: int) -> None:
        self._medium = medium
        self.name = name
        self.size = size

    @property
    def can(self) -> Can:
        return self._medium.can

    def extents(self, within: Range) -> Iterator[Range]:
        return self._medium.extents(within)

    def write(self, offset: int, content: memoryview) -> None:
        with writing(self.name):
            self._medium.write(offset, content)

    def zero(self, where: Range) -> None:
        with writing(self.name):
            self._medium.zero(where)

    def flush(self) -> None:
        with writing(self.name):
            self._medium.flush()

    def read_back(self, offset: int, into: memoryview) -> None:
        self._medium.read(offset, into)
