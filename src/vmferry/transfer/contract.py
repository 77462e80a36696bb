"""The transfer service's contract: its request, its results, and the watch that follows and steers a transfer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

from typing_extensions import TypeVar

from vmferry.model.seals import Seal
from vmferry.qemu.places import AnyPlace
from vmferry.transfer.throttle import Throttle

From = TypeVar("From", bound=AnyPlace, default=Path, covariant=True)
To = TypeVar("To", bound=AnyPlace, default=Path, covariant=True)


@dataclass(frozen=True)
class Transfer(Generic[From, To]):
    """One disk to transfer. `Transfer` without type arguments copies a file to a file, byte for byte."""

    source: From
    destination: To  # a file there is a temporary name of ours, made by copy(); a device or export exists already
    bookmarks: Path  # in the state folder, so usually on another file system than the destination
    grows: bool = False
    """The source grows while it is copied: data is appended, and of what exists only the first chunk is rewritten, at
    the end. Each copy() takes what is there then; what compare() has proved since is not read again by the next copy()
    or compare().
    """


class Watch(Protocol):
    """Follows a transfer's progress, throttles and stops it. Its methods are called from several threads at once."""

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        """Report data bytes done, data bytes to do and bytes per second; called at least once a second during work."""

    def check(self) -> None:
        """Raise Cancelled, or block while the job is paused; called before each piece of at most a chunk."""

    @property
    def throttle(self) -> Throttle:
        """The rate limiter of this transfer, which several transfers of a job may share."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a finished copy() did."""

    method: str  # "reflink" | "direct" | "buffered": from file to file; "blocks": content, through NBD or a device
    virtual_bytes: int  # size of the file, or of the disk in it
    data_bytes: int  # data found at the source (extents)
    copied_bytes: int  # written (or shared, by reflink) in this call; zero blocks are not written
    reused_bytes: int  # written by an earlier, interrupted call; verified and kept by this one
    root_hash: str  # see hashing.py
    seconds: float


@dataclass(frozen=True, slots=True)
class Compared:
    """What a finished compare() found."""

    bytes: int  # data bytes read back, or proved to be the source's own blocks
    recopied_chunks: int
    root_hash: str
    seconds: float
    seal: Seal | None = None  # of what was proved; None where nothing can be sealed


class Unwatched:
    """A watch that ignores progress and never stops the transfer, with a throttle of its own."""

    def __init__(self, limit_bytes_s: int | None = None) -> None:
        self._throttle = Throttle(limit_bytes_s)

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        """Ignore the progress."""

    def check(self) -> None:
        """Let the transfer go on."""

    @property
    def throttle(self) -> Throttle:
        return self._throttle
