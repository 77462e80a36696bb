"""The protocols of the copy loop's two ends: a source to read, a destination to write.

file.py implements them for local files, adapters.py for devices and NBD, in_memory.py for tests. All methods may be
called from several threads at once. Offsets are multiples of 4096; so are lengths, except at the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Flag, auto
from typing import Protocol

from vmferry.transfer.ranges import Range


class Can(Flag):
    """What an endpoint is able to do besides reading and writing."""

    EXTENTS = auto()  # tells data from holes; without it extents() is the whole range
    ZERO = auto()  # makes a range a hole without writing it
    SHARE = auto()  # several streams at once make it faster
    DIRECT = auto()  # goes past the page cache
    REFLINK = auto()  # can share blocks with a file of the same file system
    FLUSH = auto()  # can make durable what was written; without it nobody can promise that


class Source(Protocol):
    """A source that does not change while it is read."""

    @property
    def can(self) -> Can: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def extents(self, within: Range) -> Iterator[Range]:
        """Yield the ranges that may hold data, in order; all else reads as zero. Raises SourceUnreadable."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of `into`. Raises SourceUnreadable, or SourceChanged if the source ends too early."""


class Destination(Protocol):
    """A place to write, of the source's size."""

    @property
    def can(self) -> Can: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def extents(self, within: Range) -> Iterator[Range]:
        """Yield the ranges that may hold data, in order; all else reads as zero. Raises OSError."""

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of `content`, not necessarily durably. Raises DestinationFull, DestinationUnwritable."""

    def zero(self, where: Range) -> None:
        """Make the range read as zero, as a hole if possible. Raises DestinationFull, DestinationUnwritable."""

    def flush(self) -> None:
        """Make all that was written durable. Raises DestinationFull, DestinationUnwritable."""

    def read_back(self, offset: int, into: memoryview) -> None:
        """Fill all of `into` from the storage, past any cache.

        Raises OSError, which the caller treats as a chunk that differs.
        """
