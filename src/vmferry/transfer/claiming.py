"""Who owns the destination: a file is written, or removed, only if the bookmarks prove that we made it.

The order that makes this hold after a crash at any instant: the bookmarks are durable first, saying that a
destination is about to be created; then it is created, exclusively; then its inode is recorded; only then
does it grow. So a file without bookmarks, or with another inode, is somebody else's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmferry.errors import BookmarksDamaged, DestinationExists, SourceChanged, VmferryError
from vmferry.transfer.bookmarks import Bookmarks, Identity, Journal, Kind, Record, proved, read, sync_folder
from vmferry.transfer.contract import Transfer
from vmferry.transfer.file import DestinationFile, writing
from vmferry.transfer.rawfile import RawFile


@dataclass(frozen=True, slots=True)
class Claimed:
    """A destination of ours, open, with its bookmarks."""

    destination: DestinationFile
    journal: Journal
    known: dict[int, bytes | None]  # chunks that were durable before this call
    resumed: bool  # the destination may hold anything outside the known chunks


@contextmanager
def claimed(transfer: Transfer, source: Identity) -> Iterator[Claimed]:
    """Make the destination, or go on with the one that we made.

    Raises DestinationExists, SourceChanged, VmferryError, DestinationFull, DestinationUnwritable.
    """
    found = _found(transfer, source)
    if found is not None:
        with reopened(transfer, found, source.size) as mine:
            yield mine
        return
    with ExitStack() as stack:
        journal, raw = _create(transfer, source, stack)
        destination = stack.enter_context(DestinationFile(transfer.destination, raw))
        destination.resize(source.size)
        yield Claimed(destination, journal, {}, resumed=False)


@contextmanager
def reopened(transfer: Transfer, found: Bookmarks, size: int) -> Iterator[Claimed]:
    """The destination that these bookmarks prove to be ours, of this size, to go on with.

    Raises DestinationFull, DestinationUnwritable.
    """
    with ExitStack() as stack:
        with writing(transfer.bookmarks):
            journal = stack.enter_context(closing(Journal.resume(transfer.bookmarks, found)))
        with writing(transfer.destination):
            raw = RawFile(transfer.destination, os.O_RDWR | os.O_NOFOLLOW)
        if found.claim is None:
            _record_claim(transfer, journal, raw)
        destination = stack.enter_context(DestinationFile(transfer.destination, raw))
        destination.resize(size)
        yield Claimed(destination, journal, found.chunks, resumed=True)


def owned(transfer: Transfer) -> Bookmarks | None:
    """The bookmarks, if they prove that the file at the destination is ours; None if they do not.

    Raises DestinationUnwritable when it cannot be told.
    """
    with writing(transfer.bookmarks):
        found = read(transfer.bookmarks)
    there = _status(transfer.destination)
    return found if found and there and _ours(found, there) else None


def remove(path: Path) -> None:
    """Remove a file for good; it may be gone already."""
    with writing(path):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        sync_folder(path.parent)


def _found(transfer: Transfer, source: Identity) -> Bookmarks | None:
    """The bookmarks to go on with; None to begin afresh, after what was ours and useless has been removed."""
    found = owned(transfer)
    if found is None:
        if _status(transfer.destination) is not None:
            raise DestinationExists(path=transfer.destination)
        return None
    try:
        if proved(transfer.bookmarks, found) != source:
            raise SourceChanged(path=transfer.source)
    except BookmarksDamaged:
        remove(transfer.destination)
        return None
    return found


def _status(path: Path) -> os.stat_result | None:
    with writing(path):
        try:
            return path.lstat()
        except FileNotFoundError:
            return None


def _ours(found: Bookmarks, there: os.stat_result) -> bool:
    """The inode is the proof; before it was recorded, an empty file is the one that we were about to make."""
    if not stat.S_ISREG(there.st_mode):
        return False
    if found.claim is None:
        return found.source is not None and there.st_size == 0
    return found.claim == there.st_ino


def _create(transfer: Transfer, source: Identity, stack: ExitStack) -> tuple[Journal, RawFile]:
    with writing(transfer.bookmarks):
        journal = stack.enter_context(closing(Journal.begin(transfer.bookmarks, source)))
    try:
        with writing(transfer.destination):
            raw = RawFile(transfer.destination, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    except Exception as error:
        with suppress(VmferryError):  # the first error is the one to tell
            remove(transfer.bookmarks)
        if isinstance(error.__cause__, FileExistsError):
            raise DestinationExists(path=transfer.destination) from error
        raise
    _record_claim(transfer, journal, raw)
    return journal, raw


def _record_claim(transfer: Transfer, journal: Journal, raw: RawFile) -> None:
    """Name first, then the record of it; closes the raw file if that fails."""
    try:
        with writing(transfer.destination):
            sync_folder(transfer.destination.parent)
            inode = os.fstat(raw.fd).st_ino
        with writing(transfer.bookmarks):
            journal.append([Record(Kind.CLAIM, inode)])
    except Exception:
        raw.close()
        raise
