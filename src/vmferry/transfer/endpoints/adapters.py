"""An open thing with bytes in it, and what makes an endpoint of the copy loop out of it.

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
        """The ranges that may hold data, in order; all else reads as zero."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of into, from the storage and not from a cache of ours."""

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of it, not necessarily durably."""

    def zero(self, where: Range) -> None:
        """Make the range read as zero, as a hole if it can."""

    def flush(self) -> None:
        """Make all that was written durable."""


class MediumSource:
    """A medium to be read, as the copy loop wants it."""

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
    """A medium to be written, of which only the first `size` bytes are used."""

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
