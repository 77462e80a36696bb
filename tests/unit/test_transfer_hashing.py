"""The root hash tells contents apart, and nothing else."""

import struct

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.transfer.contract import Unwatched
from vmferry.transfer.endpoints.in_memory import InMemoryDisk
from vmferry.transfer.engine.copy_loop import Reader, scan
from vmferry.transfer.engine.hashing import nonzero, root_hash
from vmferry.transfer.engine.progress import ProgressCounter
from vmferry.transfer.engine.streams import Lane, Streams
from vmferry.transfer.ranges import BLOCK, CHUNK, Chunk, Range, by_chunk

SIZE = CHUNK + 5 * BLOCK + 4096 + 17


def hashed(content: bytes, data: list[Range], limit: int | None = None) -> str:
    memory, found = InMemoryDisk(content, data), dict[int, bytes | None]()

    def one(chunk: Chunk, lane: Lane) -> None:
        found[chunk.index] = scan(Reader(memory.read, memory.size), chunk, lane)

    Streams(Unwatched(limit), ProgressCounter(1, lambda: 0.0), 2).run(by_chunk(data), one)
    return root_hash(len(content), found)


def sparse(places: list[int]) -> tuple[bytes, list[Range]]:
    """A file of zeros with a byte set in some of its 4 KiB pages, and the extents around them."""
    content = bytearray(SIZE)
    for place in places:
        content[place] = 1 + place % 255
    pages = sorted({place // 4096 for place in places})
    return bytes(content), [Range(p * 4096, min((p + 1) * 4096, SIZE)) for p in pages]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, SIZE - 1), max_size=20))
def test_a_thin_copy_and_a_thick_one_have_the_same_hash(places: list[int]) -> None:
    content, data = sparse(places)
    assert hashed(content, data) == hashed(content, [Range(0, SIZE)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, SIZE - 1), max_size=5), st.integers(0, SIZE - 1))
def test_one_changed_byte_changes_the_hash(places: list[int], where: int) -> None:
    content, _ = sparse(places)
    other = bytearray(content)
    other[where] ^= 0x55
    assert hashed(content, [Range(0, SIZE)]) != hashed(bytes(other), [Range(0, SIZE)])


def test_the_same_bytes_elsewhere_in_the_chunk_or_file_give_another_hash() -> None:
    places = [0, BLOCK, CHUNK, CHUNK + BLOCK]
    contents = [bytes(p) + b"x" * BLOCK + bytes(2 * CHUNK - p - BLOCK) for p in places]
    assert len({hashed(c, [Range(0, 2 * CHUNK)]) for c in contents}) == len(places)


def test_zeros_of_another_size_have_another_hash() -> None:
    assert root_hash(0, {}) != root_hash(1, {})


def test_the_hash_is_the_documented_one() -> None:
    content = b"a" * BLOCK + bytes(BLOCK) + b"b" * 100
    digest = blake3(b"a" * BLOCK + b"b" * 100 + struct.pack("<Q", 0b101)).digest()
    root = blake3(struct.pack("<Q", len(content)) + struct.pack("<Q", 0) + digest).hexdigest()
    assert hashed(content, [Range(0, len(content))]) == root


def test_a_throttled_read_in_small_pieces_gives_the_same_hash() -> None:
    content = bytes(range(256)) * 1024
    whole = [Range(0, len(content))]
    assert hashed(content, whole, limit=100_000_000 // 256) == hashed(content, whole)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, BLOCK))
def test_zero_blocks_are_found_wherever_they_stand(full: list[bool], last: int) -> None:
    blocks = [(b"\0" * (BLOCK - 1) + b"x" if f else bytes(BLOCK)) for f in full]
    blocks[-1] = blocks[-1][-last:]
    content = b"".join(blocks)
    start = 3 * BLOCK
    runs = nonzero(Range(start, start + len(content)), memoryview(content))
    kept = {b for r in runs for b in range((r.start - start) // BLOCK, -(-(r.end - start) // BLOCK))}
    assert kept == {n for n, f in enumerate(full) if f}
