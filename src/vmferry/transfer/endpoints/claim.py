"""Claims the destination for a transfer, and opens it.

It is written or removed only if the bookmarks prove that this transfer made it.

The order that makes this hold after a crash at any instant: the bookmarks are durable first, saying that a
destination is about to be created; then it is created, exclusively; then its inode is recorded; only then
does it grow. So a file without bookmarks, or with another inode, is somebody else's. An image is recorded as
made once it is durable and empty; an image that is not recorded as made is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmferry.errors import BookmarksDamaged, SourceChanged, VmferryError
from vmferry.qemu import img
from vmferry.qemu.places import AnyPlace, shown
from vmferry.transfer.bookmarks import Bookmarks, Journal, Record, RecordKind, SourceIdentity, proved, read
from vmferry.transfer.contract import Transfer
from vmferry.transfer.endpoints.destination import Opened, OpenedDestination
from vmferry.transfer.endpoints.file import writing
from vmferry.transfer.endpoints.location import Location, Route
from vmferry.transfer.endpoints.ownership import Site, remove, site_of
from vmferry.transfer.endpoints.source import OpenedSource
from vmferry.transfer.ranges import Range, total


@dataclass(frozen=True, slots=True)
class Claimed:
    """A destination that this transfer owns, open, with its bookmarks."""

    opened: Opened
    journal: Journal
    known: dict[int, bytes | None]  # chunks that were durable before this call
    proved: frozenset[int]  # those of them that need not be read back again
    resumed: bool  # the destination may hold anything outside the known chunks


@contextmanager
def claimed(route: Route, original: OpenedSource, connections: int) -> Iterator[Claimed]:
    """Create the destination, or open the one that an earlier call of this transfer created. A context manager.

    Raises DestinationExists, DestinationChanged, DestinationInUse, DestinationTooSmall, SourceChanged,
    ExportFailed, DestinationFull, DestinationUnwritable.
    """
    transfer, site = route.transfer, site_of(route.destination)
    target = OpenedDestination(route.destination, route.writes, original.source.size)
    target.check()
    found = _found(transfer, site, original.identity)
    with ExitStack() as stack:
        journal = _journal(transfer.bookmarks, site, found, original.identity, stack)
        fresh = found is None
        if target.is_made and _remade(target, found, original):
            fresh = True
            with writing(transfer.bookmarks):
                journal.append(Record(RecordKind.MADE, 0))
        opened = stack.enter_context(target.opened(connections))
        kept = Bookmarks() if found is None or fresh else found
        resumed = not fresh or not _reads_as_zero(target, opened)
        yield Claimed(opened, journal, kept.chunks, frozenset(kept.proved), resumed)


@contextmanager
def reopened(route: Route, found: Bookmarks, size: int, connections: int) -> Iterator[Claimed]:
    """Open the destination of `size` bytes that these bookmarks prove to be ours, to go on with it. A context manager.

    Raises ExportFailed, DestinationInUse, DestinationTooSmall, DestinationFull, DestinationUnwritable.
    """
    with ExitStack() as stack:
        with writing(route.transfer.bookmarks):
            journal = stack.enter_context(closing(Journal.resume(route.transfer.bookmarks, found)))
        opened = stack.enter_context(OpenedDestination(route.destination, route.writes, size).opened(connections))
        yield Claimed(opened, journal, found.chunks, frozenset(found.proved), resumed=True)


def owned(bookmarks: Path, destination: Location) -> Bookmarks | None:
    """Return the bookmarks if they prove that the file or device at the destination is ours, else None.

    Raises DestinationUnwritable when that cannot be found out.
    """
    found = _read(bookmarks)
    return found if found and site_of(destination).owned(found) else None


def discard(bookmarks: Path, destination: Location) -> None:
    """Remove the destination if its bookmarks prove that it is ours. Raises DestinationUnwritable."""
    if owned(bookmarks, destination):
        site_of(destination).remove()


def _read(bookmarks: Path) -> Bookmarks | None:
    with writing(bookmarks):
        return read(bookmarks)


def _found(transfer: Transfer[AnyPlace, AnyPlace], site: Site, source: SourceIdentity) -> Bookmarks | None:
    """Return the bookmarks to go on with, or None to begin afresh.

    A destination of ours whose bookmarks are damaged is removed first. Raises SourceChanged, and what the site's
    refuse() raises if the destination is not ours.
    """
    found = _read(transfer.bookmarks)
    if found is None or not site.owned(found):
        site.refuse(found, transfer.bookmarks)
        return None
    try:
        if proved(transfer.bookmarks, found) != source:
            raise SourceChanged(path=shown(transfer.source))
    except BookmarksDamaged:
        site.remove()
        return None
    return found


def _journal(bookmarks: Path, site: Site, found: Bookmarks | None, source: SourceIdentity, stack: ExitStack) -> Journal:
    """Open the bookmarks; create the destination and record it as ours if that is not done yet."""
    with writing(bookmarks):
        opened = Journal.begin(bookmarks, source) if found is None else Journal.resume(bookmarks, found)
        journal = stack.enter_context(closing(opened))
    if found is None:
        try:
            site.create()
        except VmferryError:
            with suppress(VmferryError):  # the first error is the one to tell
                remove(bookmarks)
            raise
    if found is None or found.claim is None:
        claim = site.claim()
        with writing(bookmarks):
            journal.append(Record(RecordKind.CLAIM, claim))
    return journal


def _remade(target: OpenedDestination, found: Bookmarks | None, original: OpenedSource) -> bool:
    """Make the image, unless it was made before and is intact. Return whether it was made."""
    if found is not None and found.made and (target.place.format != "qcow2" or img.mend(target.place)):
        return False
    source = original.source
    target.make(total(source.extents(Range(0, source.size))), original.options)
    return True


def _reads_as_zero(target: OpenedDestination, opened: Opened) -> bool:
    """Does all that this transfer has not written read as zero? Not on a device or export that existed before."""
    return opened.file is not None or target.is_made
