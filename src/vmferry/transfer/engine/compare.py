"""Comparing: each chunk is read back from the storage, checked against its bookmark, and repaired if it differs."""

from __future__ import annotations

from collections.abc import Mapping

from vmferry.errors import CopyDiffers, SourceChanged
from vmferry.transfer.endpoints.interface import Destination, Source
from vmferry.transfer.engine.copy_loop import Copier, held
from vmferry.transfer.engine.streams import Lane
from vmferry.transfer.ranges import Chunk, chunk_range

TRIES = 3
_UNREADABLE = b"unreadable"  # differs from every digest and from None


class Comparer:
    """Compares and repairs the chunks of one copy; used by several streams at once."""

    def __init__(self, source: Source, destination: Destination, copier: Copier) -> None:
        self.recopied: list[int] = []
        self._source = source
        self._destination = destination
        self._copier = copier

    def chunk(self, index: int, expected: Mapping[int, bytes | None], lane: Lane) -> None:
        """Make sure that the destination holds the chunk: read it back, and copy it again if it differs.

        A chunk without bookmark has to be zero. Raises CopyDiffers after TRIES, SourceChanged if the source no longer
        holds it either.
        """
        digest = expected.get(index)
        if self._held(index, lane) == digest:
            return
        self.recopied.append(index)
        for _ in range(TRIES):
            moved = lane.moved
            self._mend(index, digest, lane)
            same = self._held(index, lane) == digest
            lane.settle(moved)
            if same:
                return
        raise CopyDiffers(path=self._destination.name, chunks=1, tries=TRIES)

    def _held(self, index: int, lane: Lane) -> bytes | None:
        try:
            return held(self._destination, index, lane)
        except OSError:
            return _UNREADABLE

    def _mend(self, index: int, digest: bytes | None, lane: Lane) -> None:
        data = tuple(self._source.extents(chunk_range(index, self._source.size)))
        self._copier.again(Chunk(index, data), lane)
        if self._copier.digests[index] != digest:
            raise SourceChanged(path=self._source.name)
        self._destination.flush()
