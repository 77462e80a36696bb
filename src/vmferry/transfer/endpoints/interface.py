"""What the copy loop needs of a place that it reads from or writes to.

file.py does it for local files, medium.py for devices and NBD, memory.py for tests. All methods may be called
from several threads at once.
Offsets are multiples of 4096; so are lengths, except at the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Flag, auto
from typing import Protocol

from vmferry.transfer.ranges import Range


class Can(Flag):
    """What an endpoint is able to do, beyond moving bytes."""

    EXTENTS = auto()  # tells data from holes; without it extents() is the whole range
    ZERO = auto()  # makes a range a hole without writing it
    SHARE = auto()  # several streams at once make it faster
    DIRECT = auto()  # goes past the page cache
    REFLINK = auto()  # can share blocks with a file of the same file system
    FLUSH = auto()  # can make durable what was written; without it nobody can promise that


class Source(Protocol):
    """A frozen thing to read."""

    @property
    def can(self) -> Can: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def extents(self, within: Range) -> Iterator[Range]:
        """The ranges that may hold data, in order; all else reads as zero. Raises SourceUnreadable."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of into. Raises SourceUnreadable; SourceChanged if the source ends too early."""


class Destination(Protocol):
    """A place to write, of the source's size."""

    @property
    def can(self) -> Can: ...

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def extents(self, within: Range) -> Iterator[Range]:
        """The ranges that may hold data, in order; all else reads as zero. Raises OSError."""

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of it, not necessarily durably. Raises DestinationFull, DestinationUnwritable."""

    def zero(self, where: Range) -> None:
        """Make the range read as zero, as a hole if it can. Raises as write does."""

    def flush(self) -> None:
        """Make all that was written durable. Raises as write does."""

    def read_back(self, offset: int, into: memoryview) -> None:
        """Fill all of into with what the storage holds, not with what a cache remembers of it.

        Raises OSError: for the caller that is a chunk which differs.
        """
