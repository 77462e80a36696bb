"""The transfer service: copy a frozen file, compare the copy, drop it.

The calls block, may be cut off at any instant and called again: copy() goes on from its bookmarks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vmferry.errors import BookmarksDamaged, DestinationUnwritable, SourceChanged
from vmferry.transfer.bookmarks import Bookmarks, Kind, Record, proved, sync_folder
from vmferry.transfer.claiming import Claimed, claimed, owned, remove, reopened
from vmferry.transfer.comparing import Comparer
from vmferry.transfer.contract import Compared, Copied, Transfer, Unwatched, Watch
from vmferry.transfer.copying import Copier, Reader, Recorder, scan, with_strays
from vmferry.transfer.endpoints import Can
from vmferry.transfer.file import DestinationFile, SourceFile, reading, writing
from vmferry.transfer.hashing import root_hash
from vmferry.transfer.progress import Progress
from vmferry.transfer.ranges import CHUNK, Chunk, Range, by_chunk, total
from vmferry.transfer.sharing import same_blocks
from vmferry.transfer.streams import Lane, Streams
from vmferry.transfer.throttle import Throttle

__all__ = ["CHUNK", "Compared", "Copied", "Throttle", "Transfer", "Unwatched", "Watch"]
__all__ += ["compare", "copy", "drop", "forget", "root_hash_of"]


def copy(transfer: Transfer, watch: Watch, streams: int = 4) -> Copied:
    """Copy the source to the destination, durably with its bookmarks and its name; or go on with that.

    Chunks that an earlier call left are compared before they are kept. After any error the source is
    untouched and the bookmarks are valid. Raises SourceUnreadable, SourceChanged, DestinationExists,
    DestinationFull, DestinationUnwritable and what watch.check() raises.
    """
    began = time.monotonic()
    with SourceFile(transfer.source) as source, claimed(transfer, source.identity) as mine:
        data = list(source.extents(_all(source)))
        work = _Work(watch, streams, total(data))
        copier = Copier(source, mine.destination, Recorder(mine.destination, mine.journal, transfer.bookmarks))
        reflink = _shared(source, mine.destination, work)
        if reflink:
            _hash_shared(source, mine.destination, copier, work)
        else:
            _copy_data(mine, data, copier, work)
        _finish(transfer, source, mine, copier, work, reflink=reflink)
        return Copied(
            method="reflink" if reflink else _method(source, mine.destination),
            virtual_bytes=source.size,
            data_bytes=total(data),
            copied_bytes=total(data) if reflink else sum(copier.written),
            reused_bytes=sum(copier.reused),
            root_hash=root_hash(source.size, copier.digests),
            seconds=time.monotonic() - began,
        )


def compare(transfer: Transfer, watch: Watch, streams: int = 4) -> Compared:
    """Prove that the storage holds what copy() wrote, and mend what it does not.

    Everything is read back past the page cache and hashed; a reflink whose extents are the source's own is
    proved by that. Raises CopyDiffers, SourceChanged, SourceUnreadable, DestinationFull,
    DestinationUnwritable, BookmarksDamaged if copy() did not finish, and what watch.check() raises.
    """
    began = time.monotonic()
    found = _finished(transfer)
    with ExitStack() as stack:
        source = stack.enter_context(SourceFile(transfer.source))
        if proved(transfer.bookmarks, found) != source.identity:
            raise SourceChanged(path=transfer.source)
        mine = stack.enter_context(reopened(transfer, found, source.size))
        if found.reflink and same_blocks(source.raw.fd, mine.destination.raw.fd):
            proven, recopied = total(source.extents(_all(source))), 0
        else:
            proven, recopied = _compare_data(transfer, source, mine, found, _Work(watch, streams))
        source.confirm()
    return Compared(proven, recopied, root_hash(source.size, found.chunks), time.monotonic() - began)


def drop(transfer: Transfer) -> None:
    """Remove the destination, if its bookmarks prove that it is ours, and the bookmarks; may be called again.

    A file of that name which is not proved to be ours stays. Raises DestinationUnwritable.
    """
    if owned(transfer):
        remove(transfer.destination)
    forget(transfer)


def forget(transfer: Transfer) -> None:
    """Remove the bookmarks only: the destination is no longer ours. Raises DestinationUnwritable."""
    remove(transfer.bookmarks)


def root_hash_of(path: Path, watch: Watch, streams: int = 4) -> str:
    """Read a file past the page cache and return its root hash. Raises SourceUnreadable, SourceChanged."""
    with SourceFile(path) as source:
        data = list(source.extents(_all(source)))
        digests: dict[int, bytes | None] = {}

        def hash_one(chunk: Chunk, lane: Lane) -> None:
            digests[chunk.index] = scan(Reader(source.read, source.size), chunk, lane)

        _Work(watch, streams, total(data)).streams().run(by_chunk(data), hash_one)
        source.confirm()
        return root_hash(source.size, digests)


@dataclass(slots=True)
class _Work:
    """How one call does its work."""

    watch: Watch
    count: int
    total_bytes: int = 0
    _progress: Progress | None = field(default=None, init=False)

    def streams(self, most: int | None = None) -> Streams:
        """Threads for the next part of the work, which all count on one progress."""
        if self._progress is None:
            self._progress = Progress(self.total_bytes, time.monotonic)
        return Streams(self.watch, self._progress, most or self.count)

    def alone(self, act: Callable[[], None]) -> None:
        """One long call, while the watch is told and asked as ever."""
        self.streams(1).run([act], lambda call, _: call())


def _all(file: SourceFile | DestinationFile) -> Range:
    return Range(0, file.size)


def _method(source: SourceFile, destination: DestinationFile) -> str:
    return "direct" if Can.DIRECT in source.can & destination.can else "buffered"


def _shared(source: SourceFile, destination: DestinationFile, work: _Work) -> bool:
    """Try to share the source's blocks; a clone that was cut off is made again, whole."""
    answers: list[bool] = []
    work.alone(lambda: answers.append(destination.share(source)))
    return answers[0]


def _hash_shared(source: SourceFile, destination: DestinationFile, copier: Copier, work: _Work) -> None:
    """Hash what was shared; a block that cannot be read there cannot be read at the source either."""
    destination.flush()

    def read(offset: int, into: memoryview) -> None:
        with reading(source.path, offset):
            destination.read_back(offset, into)

    def hash_one(chunk: Chunk, lane: Lane) -> None:
        copier.note(chunk.index, scan(Reader(read, source.size), chunk, lane))

    with writing(destination.path):
        data = list(destination.extents(_all(destination)))
    work.streams().run(by_chunk(data), hash_one)


def _copy_data(mine: Claimed, data: list[Range], copier: Copier, work: _Work) -> None:
    if not mine.resumed:
        work.streams().run(by_chunk(data), copier.fresh)
        return
    with writing(mine.destination.path):
        there = list(mine.destination.extents(_all(mine.destination)))
    chunks = with_strays(by_chunk(data), by_chunk(there))
    work.streams().run(chunks, lambda chunk, lane: copier.resumed(chunk, mine.known, lane))


def _finish(
    transfer: Transfer, source: SourceFile, mine: Claimed, copier: Copier, work: _Work, *, reflink: bool
) -> None:
    """Everything durable, then the record that the copy is whole."""
    work.alone(copier.flush)
    mine.destination.take_attributes(source.attributes())
    with writing(transfer.destination):
        sync_folder(transfer.destination.parent)
    source.confirm()
    with writing(transfer.bookmarks):
        mine.journal.append([Record(Kind.WHOLE, int(reflink))])


def _finished(transfer: Transfer) -> Bookmarks:
    """The bookmarks of a copy that copy() has finished."""
    found = owned(transfer)
    if found is None:
        raise DestinationUnwritable(path=transfer.destination, reason="it is not the file that was copied")
    if not found.whole:
        raise BookmarksDamaged(path=transfer.bookmarks, reason="they end before the copy does")
    return found


def _compare_data(
    transfer: Transfer, source: SourceFile, mine: Claimed, found: Bookmarks, work: _Work
) -> tuple[int, int]:
    """Bytes compared, chunks copied again."""
    mine.destination.flush()
    recorder = Recorder(mine.destination, mine.journal, transfer.bookmarks)
    comparer = Comparer(source, mine.destination, Copier(source, mine.destination, recorder))
    with writing(transfer.destination):
        there = list(mine.destination.extents(_all(mine.destination)))
    work.total_bytes = total(there)
    indexes = _to_compare(found, by_chunk(there))
    work.streams().run(indexes, lambda index, lane: comparer.chunk(index, found.chunks, lane))
    return work.total_bytes, len(comparer.recopied)


def _to_compare(found: Bookmarks, there: Iterable[Chunk]) -> list[int]:
    """All chunks that should hold data, and all that do."""
    should = {index for index, digest in found.chunks.items() if digest is not None}
    return sorted(should.union(chunk.index for chunk in there))
