"""The copy loop between endpoints in memory."""

import random
from pathlib import Path
from threading import Event

import pytest

from vmferry.errors import Cancelled, CopyDiffers, DestinationFull, SourceChanged, SourceUnreadable
from vmferry.transfer.bookmarks import Journal, SourceIdentity, read
from vmferry.transfer.contract import Unwatched, Watch
from vmferry.transfer.endpoints.in_memory import InMemoryDisk, Trouble, no_trouble
from vmferry.transfer.engine.compare import Comparer
from vmferry.transfer.engine.copy_loop import Copier, Recorder, with_strays
from vmferry.transfer.engine.progress import ProgressCounter
from vmferry.transfer.engine.streams import Lane, Streams
from vmferry.transfer.ranges import BLOCK, CHUNK, Chunk, Range, by_chunk, chunk_range, total

CHUNKS = 6
NOISE = random.Random(1).randbytes(CHUNKS * CHUNK)


class Bench:
    """A source, an empty destination and what moves the one to the other."""

    def __init__(
        self, tmp_path: Path, content: bytes = NOISE, source: Trouble = no_trouble, destination: Trouble = no_trouble
    ) -> None:
        self.source = InMemoryDisk(content, trouble=source)
        self.destination = InMemoryDisk(bytes(len(content)), data=[], trouble=destination)
        self.path = tmp_path / "bookmarks"
        self.journal = Journal.begin(self.path, SourceIdentity(len(content), 1, 1))
        self.recorder = Recorder(self.destination, self.journal, self.path)
        self.copier = Copier(self.source, self.destination, self.recorder)

    def chunks(self) -> list[Chunk]:
        return list(by_chunk(self.source.data))

    def copy(self, watch: Watch | None = None, streams: int = 3) -> None:
        self.run(watch or Unwatched(), streams)
        self.copier.flush()

    def run(self, watch: Watch, streams: int) -> None:
        Streams(watch, ProgressCounter(total(self.source.data), lambda: 0.0), streams).run(
            self.chunks(), self.copier.fresh
        )

    def compare(self) -> list[int]:
        comparer = Comparer(self.source, self.destination, self.copier)
        expected = dict(self.copier.digests)
        Streams(Unwatched(), ProgressCounter(1, lambda: 0.0), 2).run(
            range(CHUNKS), lambda index, lane: comparer.chunk(index, expected, lane)
        )
        return sorted(comparer.recopied)


def test_a_copy_is_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.copy()
    assert bench.destination.content == bench.source.content
    assert bench.compare() == []


def test_zero_blocks_are_not_written(tmp_path: Path) -> None:
    content = bytearray(2 * CHUNK)
    content[5 * BLOCK + 100] = 1
    bench = Bench(tmp_path, bytes(content))
    bench.copy()
    assert bench.destination.written == [Range(5 * BLOCK, 6 * BLOCK)]
    assert bench.copier.digests[1] is None


def test_a_chunk_is_noted_as_soon_as_it_was_written(tmp_path: Path) -> None:
    """What a kill at each write would leave: all chunks but the one in flight."""
    noted = list[int]()

    def trouble(action: str, offset: int) -> None:
        if action == "write":
            found = read(tmp_path / "bookmarks")
            assert found is not None
            noted.append(len(found.chunks))

    Bench(tmp_path, destination=trouble).copy(streams=1)
    assert noted == list(range(CHUNKS))


def test_all_is_flushed_before_a_copy_ends(tmp_path: Path) -> None:
    last = list[str]()
    bench = Bench(tmp_path, destination=lambda action, _: last.append(action))
    bench.copy()
    assert last[-1] == "flush"
    found = read(bench.path)
    assert found is not None
    assert found.chunks == bench.copier.digests


def test_the_first_error_stops_all_streams_within_a_chunk(tmp_path: Path) -> None:
    reads = list[int]()

    def trouble(action: str, offset: int) -> None:
        reads.append(offset)
        if offset == CHUNK:
            raise SourceUnreadable(path="disk", offset=offset, reason="Input/output error")

    bench = Bench(tmp_path, source=trouble)
    with pytest.raises(SourceUnreadable, match="at byte 4194304"):
        bench.copy(streams=1)
    assert reads == [0, CHUNK]


def test_an_error_in_one_stream_ends_the_others_that_wait_for_the_throttle(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    waiting = Event()

    class Slow(Unwatched):
        def check(self) -> None:
            waiting.set()

    def fail(chunk: Chunk, lane: Lane) -> None:
        if chunk.index:
            lane.admit(10**12)
        assert waiting.wait(10)
        raise DestinationFull(path="there")

    with pytest.raises(DestinationFull):
        Streams(Slow(1), ProgressCounter(1, lambda: 0.0), 3).run(bench.chunks(), fail)


def test_cancel_stops_all_and_what_was_recorded_stays_true(tmp_path: Path) -> None:
    class CancelAfterThree(Unwatched):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if bench.destination.written:
                raise Cancelled

    bench = Bench(tmp_path)
    with pytest.raises(Cancelled):
        bench.copy(CancelAfterThree())
    bench.copier.flush()
    found = read(bench.path)
    assert found is not None
    assert 0 < len(found.chunks) < CHUNKS
    for index in found.chunks:
        part = chunk_range(index, bench.source.size)
        assert bench.destination.content[part.start : part.end] == NOISE[part.start : part.end]


def test_progress_counts_each_byte_once_and_ends_at_the_total(tmp_path: Path) -> None:
    class Listening(Unwatched):
        last = (0, 0)

        def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
            self.last = (done_bytes, total_bytes)

    watch = Listening()
    Bench(tmp_path).copy(watch)
    assert watch.last == (len(NOISE), len(NOISE))


def test_resuming_keeps_what_is_true_and_copies_what_is_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.copy()
    known = {index: digest for index, digest in bench.copier.digests.items() if index != 4}
    bench.destination.content[CHUNK + 9] ^= 1
    again = Copier(bench.source, bench.destination, bench.recorder)
    Streams(Unwatched(), ProgressCounter(1, lambda: 0.0), 2).run(
        bench.chunks(), lambda chunk, lane: again.resumed(chunk, known, lane)
    )
    assert bench.destination.content == bench.source.content
    assert sum(again.reused) == 4 * CHUNK
    assert sum(again.written) == 2 * CHUNK


def test_compare_mends_a_flipped_bit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.copy()
    bench.destination.content[3 * CHUNK + 70_000] ^= 4
    assert bench.compare() == [3]
    assert bench.destination.content == bench.source.content


def test_compare_mends_what_cannot_be_read_back(tmp_path: Path) -> None:
    broken = {2 * CHUNK}

    def trouble(action: str, offset: int) -> None:
        if action == "write":
            broken.discard(offset)
        if action == "read_back" and offset in broken and bench.destination.flushes:
            raise OSError(5, "Input/output error")

    bench = Bench(tmp_path, destination=trouble)
    bench.copy()
    broken.add(2 * CHUNK)
    assert bench.compare() == [2]


def test_a_storage_that_keeps_failing_is_not_trusted(tmp_path: Path) -> None:
    def trouble(action: str, offset: int) -> None:
        if action == "read_back" and offset == 0:
            raise OSError(5, "Input/output error")

    bench = Bench(tmp_path, destination=trouble)
    bench.copy()
    with pytest.raises(CopyDiffers, match="3 tries"):
        bench.compare()


def test_a_source_that_no_longer_gives_what_it_gave_is_not_copied_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.copy()
    bench.destination.content[0] ^= 1
    bench.source.content[1] ^= 1
    with pytest.raises(SourceChanged):
        bench.compare()


def test_compare_makes_holes_of_what_should_be_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.source.content[CHUNK : 2 * CHUNK] = bytes(CHUNK)
    bench.source.data = [Range(0, CHUNK), Range(2 * CHUNK, CHUNKS * CHUNK)]
    bench.copy()
    bench.destination.write(CHUNK, memoryview(b"stray"))
    assert bench.compare() == [1]
    assert bench.destination.content == bench.source.content


def test_strays_come_as_chunks_without_data() -> None:
    data, there = [Chunk(1, (Range(0, 1),))], [Chunk(0, (Range(0, 1),)), Chunk(1, (Range(0, 1),))]
    assert list(with_strays(data, there)) == [data[0], Chunk(0, ())]
