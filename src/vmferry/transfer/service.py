"""The transfer service: copy a frozen file, compare the copy, drop it.

The calls block. They may be cut off at any instant and called again: copy() goes on from its bookmarks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vmferry.errors import BookmarksDamaged, DestinationUnwritable, SourceChanged
from vmferry.qemu.places import AnyPlace, Place, shown
from vmferry.transfer.bookmarks import Bookmarks, Record, RecordKind, proved, read
from vmferry.transfer.contract import Compared, Copied, Transfer, Unwatched, Watch
from vmferry.transfer.endpoints.claim import Claimed, claimed, discard, owned, reopened
from vmferry.transfer.endpoints.file import DestinationFile, SourceFile, identity, reading, writing
from vmferry.transfer.endpoints.interface import Can, Destination, Source
from vmferry.transfer.endpoints.location import Route, locate_destination, route_of
from vmferry.transfer.endpoints.ownership import remove
from vmferry.transfer.endpoints.reflink import same_blocks
from vmferry.transfer.endpoints.source import OpenedSource, opened_alone, opened_source
from vmferry.transfer.engine.compare import Comparer
from vmferry.transfer.engine.copy_loop import Copier, Reader, Recorder, scan, with_strays
from vmferry.transfer.engine.hashing import root_hash
from vmferry.transfer.engine.progress import ProgressCounter
from vmferry.transfer.engine.streams import Lane, Streams
from vmferry.transfer.ranges import CHUNK, Chunk, Range, by_chunk, total
from vmferry.transfer.throttle import Throttle
from vmferry.transfer.verification.seals import Proof, sealed

__all__ = ["CHUNK", "AnyPlace", "Compared", "Copied", "Place", "Throttle", "Transfer", "Unwatched", "Watch"]
__all__ += ["compare", "copy", "drop", "forget", "root_hash_of", "unchanged"]

Asked = Transfer[AnyPlace, AnyPlace]
"""What is asked for; copy() and compare() take a Route too, whose places have been looked at."""


def copy(asked: Asked | Route, watch: Watch, streams: int = 4) -> Copied:
    """Copy the source to the destination, durably with its bookmarks and its name; or resume an earlier call.

    Chunks that an earlier call left are compared before they are kept. After any error the source is
    untouched and the bookmarks are valid. Raises SourceUnreadable, SourceChanged, SourceInUse, BadPlace,
    DestinationExists, DestinationChanged, DestinationInUse, DestinationTooSmall, DestinationFull,
    DestinationUnwritable, ExportFailed, ImageToolFailed and what watch.check() raises.
    """
    began = time.monotonic()
    route = _route(asked)
    transfer = route.transfer
    with ExitStack() as stack:
        of = stack.enter_context(opened_source(route, streams))
        source = of.source
        mine = stack.enter_context(claimed(route, of, streams))
        data = list(source.extents(_all(source)))
        work = _Work(watch, streams, total(data))
        destination = mine.opened.destination
        copier = Copier(source, destination, Recorder(destination, mine.journal, transfer.bookmarks))
        reflink = not transfer.grows and _shared(of.file, mine.opened.file, copier, work)
        if not reflink:
            _copy_data(transfer, mine, data, copier, work)
        _finish(transfer, of, mine, copier, work, reflink=reflink)
        return Copied(
            method="reflink" if reflink else _method(of, mine),
            virtual_bytes=source.size,
            data_bytes=total(data),
            copied_bytes=total(data) if reflink else sum(copier.written),
            reused_bytes=sum(copier.reused),
            root_hash=root_hash(source.size, copier.digests),
            seconds=time.monotonic() - began,
        )


def compare(asked: Asked | Route, watch: Watch, streams: int = 4) -> Compared:
    """Prove that the storage holds what copy() wrote, and repair chunks that differ.

    Everything is read back past the page cache and hashed; a reflink whose extents are the source's own is
    proved by that. Raises CopyDiffers, SourceChanged, BookmarksDamaged if copy() did not finish, what copy()
    raises of opening, reading and writing, and what watch.check() raises.
    """
    began = time.monotonic()
    route = _route(asked)
    transfer, found = route.transfer, _finished(route)
    with ExitStack() as stack:
        of = stack.enter_context(opened_source(route, 1))  # it is read only where the copy differs
        if proved(transfer.bookmarks, found) != of.identity:
            raise SourceChanged(path=shown(transfer.source))
        size = of.source.size
        mine = stack.enter_context(reopened(route, found, size, streams))
        there = mine.opened.file
        if found.reflink and of.file and there and same_blocks(of.file.raw.fd, there.raw.fd):
            proven, recopied = total(of.source.extents(_all(of.source))), 0
        else:
            proven, recopied = _compare_data(transfer, of.source, mine, found, _Work(watch, streams))
        of.confirm()
    # After the destination was closed: QEMU writes its tables then.
    root = root_hash(size, found.chunks)
    seal = sealed(route.destination.place, Proof(size, root, found.chunks, _hashed(route)))
    return Compared(proven, recopied, root, time.monotonic() - began, seal)


def drop(asked: Asked) -> None:
    """Remove the destination, if its bookmarks prove that we made it, and the bookmarks; may be called again.

    A file of that name which is not proved to be ours stays; so does a device, an export, and a file on NFS
    that is named by a URL. Raises DestinationUnwritable.
    """
    discard(asked.bookmarks, locate_destination(asked.destination))
    forget(asked)


def forget(asked: Asked) -> None:
    """Remove the bookmarks only; the destination stays and is no longer owned. Raises DestinationUnwritable."""
    remove(asked.bookmarks)


def unchanged(asked: Asked) -> bool:
    """Is the source still what the bookmarks were made of, as far as that can be told without reading it?

    Files are compared by inode, size and modification time; a device or URL by name and size. False when
    there are no bookmarks. Raises SourceUnreadable, SourceInUse, ExportFailed.
    """
    found = read(asked.bookmarks)
    if found is None:
        return False
    if isinstance(asked.source, Path):
        return found.source == identity(asked.source)
    with opened_source(route_of(asked), 1) as now:
        return found.source == now.identity


def root_hash_of(where: AnyPlace, watch: Watch, streams: int = 4) -> str:
    """Read a file's bytes, or a place's content, past the page cache and return its root hash.

    Raises SourceUnreadable, SourceChanged, SourceInUse, ExportFailed.
    """
    with opened_alone(where, streams) as of:
        data = list(of.source.extents(_all(of.source)))
        digests: dict[int, bytes | None] = {}

        def hash_one(chunk: Chunk, lane: Lane) -> None:
            digests[chunk.index] = scan(Reader(of.source.read, of.source.size), chunk, lane)

        _Work(watch, streams, total(data)).streams().run(by_chunk(data), hash_one)
        of.confirm()
        return root_hash(of.source.size, digests)


@dataclass(slots=True)
class _Work:
    """The watch, the number of streams and the progress of one call of the service."""

    watch: Watch
    count: int
    total_bytes: int = 0
    _progress: ProgressCounter | None = field(default=None, init=False)

    def streams(self, most: int | None = None) -> Streams:
        """Return threads for the next part of the work; all parts count on one progress."""
        if self._progress is None:
            self._progress = ProgressCounter(self.total_bytes, time.monotonic)
        return Streams(self.watch, self._progress, most or self.count)

    def alone(self, act: Callable[[], None]) -> None:
        """Run one long call in a stream, so that the watch is still called meanwhile."""
        self.streams(1).run([act], lambda call, _: call())


def _route(asked: Asked | Route) -> Route:
    return asked if isinstance(asked, Route) else route_of(asked)


def _all(end: Source | Destination) -> Range:
    return Range(0, end.size)


def _method(of: OpenedSource, mine: Claimed) -> str:
    if of.file is None or mine.opened.file is None:
        return "blocks"
    return "direct" if Can.DIRECT in of.file.can & mine.opened.file.can else "buffered"


def _shared(source: SourceFile | None, destination: DestinationFile | None, copier: Copier, work: _Work) -> bool:
    """Share the source's blocks by reflink and hash them. Return False if these are no files or cannot share.

    A clone that was cut off is made again, whole.
    """
    if source is None or destination is None:
        return False
    answers: list[bool] = []
    work.alone(lambda: answers.append(destination.share(source)))
    if answers[0]:
        _hash_shared(source, destination, copier, work)
    return answers[0]


def _hash_shared(source: SourceFile, destination: DestinationFile, copier: Copier, work: _Work) -> None:
    """Hash the shared blocks at the destination; one that is unreadable there is unreadable at the source too."""
    destination.flush()

    def read(offset: int, into: memoryview) -> None:
        with reading(source.path, offset):
            destination.read_back(offset, into)

    def hash_one(chunk: Chunk, lane: Lane) -> None:
        copier.note(chunk.index, scan(Reader(read, source.size), chunk, lane))

    work.streams().run(by_chunk(_extents(destination)), hash_one)


def _copy_data(transfer: Asked, mine: Claimed, data: list[Range], copier: Copier, work: _Work) -> None:
    if not mine.resumed:
        work.streams().run(by_chunk(data), copier.fresh)
        return
    chunks = with_strays(by_chunk(data), by_chunk(_extents(mine.opened.destination)))

    def go_on(chunk: Chunk, lane: Lane) -> None:
        if chunk.index in mine.proved:
            copier.kept(chunk, mine.known.get(chunk.index), lane)
        elif transfer.grows:
            copier.again(chunk, lane)  # it may have been written again, or on, at the source
        else:
            copier.resumed(chunk, mine.known, lane)

    work.streams().run(chunks, go_on)


def _hashed(route: Route) -> str:
    return "bytes" if route.byte_for_byte else "content"


def _extents(destination: Destination) -> list[Range]:
    with writing(destination.name):
        return list(destination.extents(_all(destination)))


def _finish(transfer: Asked, of: OpenedSource, mine: Claimed, copier: Copier, work: _Work, *, reflink: bool) -> None:
    """Make everything durable, then record that the copy is whole."""
    work.alone(copier.flush)
    mine.opened.settle(of.attributes)
    of.confirm()
    with writing(transfer.bookmarks):
        mine.journal.append(Record(RecordKind.WHOLE, int(reflink)))


def _finished(route: Route) -> Bookmarks:
    """Return the bookmarks of a copy that copy() has finished. Raises DestinationUnwritable, BookmarksDamaged."""
    found = owned(route.transfer.bookmarks, route.destination)
    if found is None:
        raise DestinationUnwritable(path=shown(route.destination.where), reason="it is not what was copied")
    if not found.whole:
        raise BookmarksDamaged(path=route.transfer.bookmarks, reason="they end before the copy does")
    return found


def _compare_data(transfer: Asked, source: Source, mine: Claimed, found: Bookmarks, work: _Work) -> tuple[int, int]:
    """Compare the chunks that are not proved yet. Return bytes compared and the number of chunks copied again."""
    destination = mine.opened.destination
    destination.flush()
    recorder = Recorder(destination, mine.journal, transfer.bookmarks)
    comparer = Comparer(source, destination, Copier(source, destination, recorder))
    there = [chunk for chunk in by_chunk(_extents(destination)) if chunk.index not in found.proved]
    work.total_bytes = sum(total(chunk.data) for chunk in there)
    last = source.size // CHUNK

    def compare_one(index: int, lane: Lane) -> None:
        comparer.chunk(index, found.chunks, lane)
        if transfer.grows and 0 < index < last:
            recorder.proved(index)

    work.streams().run(_to_compare(found, there), compare_one)
    return work.total_bytes, len(comparer.recopied)


def _to_compare(found: Bookmarks, there: Iterable[Chunk]) -> list[int]:
    """Return the indices of all chunks that should hold data or do, without those that have been proved."""
    should = {index for index, digest in found.chunks.items() if digest is not None} - found.proved
    return sorted(should.union(chunk.index for chunk in there))
