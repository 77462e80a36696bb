"""The copy loop: read a piece, look for zeros, hash, write; the same between all endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from vmferry.transfer.bookmarks import Journal, Record, RecordKind
from vmferry.transfer.endpoints.file import writing
from vmferry.transfer.endpoints.interface import Destination, Source
from vmferry.transfer.engine.hashing import ChunkDigest
from vmferry.transfer.engine.streams import Lane
from vmferry.transfer.ranges import BLOCK, Chunk, Range, align, chunk_range, clip, common, gaps, total

Keep = Callable[[Range, memoryview, list[Range]], None]

BATCH_S = 1.0  # what a power failure may cost
BATCH_CHUNKS = 64


class Reader(NamedTuple):
    """A read function and the size behind it: the source's read(), or the destination's read_back()."""

    read: Callable[[int, memoryview], None]
    size: int


def scan(reader: Reader, chunk: Chunk, lane: Lane, keep: Keep | None = None) -> bytes | None:
    """Read the data of a chunk and return its digest; call `keep` with each piece and its parts that are not zero.

    Pieces are whole blocks, so they may reach a little into the holes around the data, which costs no reads
    of the disk. Raises what reader, keep and lane raise.
    """
    digest = ChunkDigest()
    for span in align(chunk.data, BLOCK, reader.size):
        for piece in lane.pieces(span):
            moving = total(clip(chunk.data, piece))
            lane.admit(moving)
            content = lane.buffer[: piece.length]
            reader.read(piece.start, content)
            kept = digest.update(piece, content)
            if keep is not None:
                keep(piece, content, kept)
            lane.count(moving)
    return digest.digest()


def held(destination: Destination, index: int, lane: Lane) -> bytes | None:
    """Read a chunk back from the destination and return its digest. Raises OSError."""
    data = tuple(destination.extents(chunk_range(index, destination.size)))
    return scan(Reader(destination.read_back, destination.size), Chunk(index, data), lane)


class Copier:
    """Copies chunks of one source to one destination; used by several streams at once."""

    def __init__(self, source: Source, destination: Destination, recorder: Recorder) -> None:
        self.digests: dict[int, bytes | None] = {}
        self.written: list[int] = []
        self.reused: list[int] = []
        self._source = source
        self._destination = destination
        self._recorder = recorder

    def fresh(self, chunk: Chunk, lane: Lane) -> None:
        """Copy a chunk to a destination where all of it still reads as zero."""
        digest, _ = self._moved(chunk, lane)
        self.note(chunk.index, digest)

    def note(self, index: int, digest: bytes | None) -> None:
        """Record that a chunk was written to the destination, perhaps not yet durably."""
        self.digests[index] = digest
        self._recorder.add(index, digest)

    def flush(self) -> None:
        """Make all chunks and their records durable."""
        self._recorder.flush()

    def again(self, chunk: Chunk, lane: Lane) -> None:
        """Copy a chunk over unknown content; zeros are written only where the destination holds data."""
        whole = chunk_range(chunk.index, self._source.size)
        with writing(self._destination.name):
            before = list(self._destination.extents(whole))
        digest, runs = self._moved(chunk, lane)
        for stale in common(before, gaps(runs, whole)):
            self._destination.zero(stale)
        self.note(chunk.index, digest)

    def resumed(self, chunk: Chunk, known: Mapping[int, bytes | None], lane: Lane) -> None:
        """Keep a chunk that is bookmarked and proves intact when read back; copy it again otherwise."""
        before = lane.moved
        if chunk.index in known and self._holds(chunk.index, known[chunk.index], lane):
            lane.settle(before)
            self.kept(chunk, known[chunk.index], lane)
            return
        lane.settle(before)
        self.again(chunk, lane)

    def kept(self, chunk: Chunk, digest: bytes | None, lane: Lane) -> None:
        """Count a chunk that is at the destination already as done and reused."""
        self.digests[chunk.index] = digest
        self.reused.append(total(chunk.data))
        lane.count(total(chunk.data))

    def _moved(self, chunk: Chunk, lane: Lane) -> tuple[bytes | None, list[Range]]:
        """Write the parts of a chunk that are not zero. Return its digest and the ranges written."""
        runs = list[Range]()

        def keep(piece: Range, content: memoryview, kept: list[Range]) -> None:
            for run in common(kept, chunk.data):
                self._destination.write(run.start, content[run.start - piece.start : run.end - piece.start])
                self.written.append(run.length)
                runs.append(run)

        return scan(Reader(self._source.read, self._source.size), chunk, lane, keep), runs

    def _holds(self, index: int, digest: bytes | None, lane: Lane) -> bool:
        try:
            return held(self._destination, index, lane) == digest
        except OSError:
            return False  # unreadable there: writing it again lets a disk remap the sector


def with_strays(data: Iterable[Chunk], there: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield the source's chunks, then those with data at the destination only, which shall become holes."""
    wanted = set[int]()
    for chunk in data:
        wanted.add(chunk.index)
        yield chunk
    for chunk in there:
        if chunk.index not in wanted:
            yield Chunk(chunk.index, ())


class Recorder:
    """Records each chunk at once; from time to time the stream that finds it due makes chunks and records durable."""

    def __init__(self, destination: Destination, journal: Journal, path: Path) -> None:
        self._destination = destination
        self._journal = journal
        self._path = path
        self._noted = 0
        self._since = time.monotonic()
        self._lock = Lock()
        self._flushing = Lock()

    def add(self, index: int, digest: bytes | None) -> None:
        """Record a chunk that was written. Raises DestinationFull, DestinationUnwritable."""
        with self._lock:
            with writing(self._path):
                self._journal.note(chunk_record(index, digest))
            self._noted += 1
            due = self._noted >= BATCH_CHUNKS or time.monotonic() - self._since >= BATCH_S
        if due and self._flushing.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._flushing.release()

    def proved(self, index: int) -> None:
        """Record that a durable chunk was read back and need not be read again. Raises DestinationUnwritable."""
        with self._lock, writing(self._path):
            self._journal.note(Record(RecordKind.PROVED, index))

    def flush(self) -> None:
        """Make all recorded chunks durable, then their records. Raises DestinationFull, DestinationUnwritable."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            noted, self._noted = self._noted, 0
            self._since = time.monotonic()
        if noted:
            self._destination.flush()
            with writing(self._path):
                self._journal.sync()


def chunk_record(index: int, digest: bytes | None) -> Record:
    return Record(RecordKind.ZERO, index) if digest is None else Record(RecordKind.DATA, index, digest)
