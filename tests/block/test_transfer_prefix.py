"""A file that grows is carried while it is written; what was compared once is not read again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.nbd_servers import certificates, needs

from vmferry.errors import SourceUnreadable
from vmferry.hosts.libvirt.nbd_exports import ExportAddress, Exports
from vmferry.transfer import CHUNK, Place, Transfer, Unwatched, compare, copy, drop

PASSES = st.lists(
    st.tuples(st.integers(1, 3 * CHUNK), st.sampled_from(["copied", "compared", "not brought"])), min_size=1, max_size=4
)


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    return Transfer(tmp_path / "memory", tmp_path / "memory.part", tmp_path / "bookmarks", grows=True)


def append(path: Path, length: int) -> None:
    with path.open("ab") as file:
        file.write(random.Random(length + file.tell()).randbytes(length))


def write_head_again(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"complete")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))


def test_only_what_is_new_and_the_first_chunk_are_moved_and_read_back_in_the_end(transfer: Transfer) -> None:
    append(transfer.source, 5 * CHUNK)
    assert copy(transfer, Unwatched()).copied_bytes == 5 * CHUNK
    assert compare(transfer, Unwatched()).bytes == 5 * CHUNK
    append(transfer.source, CHUNK + 12345)
    write_head_again(transfer.source)

    copied, compared = copy(transfer, Unwatched()), compare(transfer, Unwatched())

    assert copied.copied_bytes == 2 * CHUNK + 12345
    assert copied.reused_bytes == 4 * CHUNK
    assert compared.bytes < 2 * CHUNK + 20000  # in whole pages
    assert compared.recopied_chunks == 0
    assert compared.root_hash == copied.root_hash
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_a_chunk_that_was_not_full_yet_is_moved_again(transfer: Transfer) -> None:
    append(transfer.source, 2 * CHUNK + 100)
    copy(transfer, Unwatched())
    compare(transfer, Unwatched())
    append(transfer.source, 100)

    assert copy(transfer, Unwatched()).reused_bytes == CHUNK
    assert compare(transfer, Unwatched()).recopied_chunks == 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_what_was_copied_and_not_compared_is_not_believed(transfer: Transfer) -> None:
    append(transfer.source, 4 * CHUNK)
    copy(transfer, Unwatched())
    flip(transfer.destination, 2 * CHUNK + 7)
    append(transfer.source, CHUNK)

    assert copy(transfer, Unwatched()).reused_bytes == 0
    assert compare(transfer, Unwatched()).recopied_chunks == 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_another_file_of_that_name_begins_anew_once_the_first_was_dropped(transfer: Transfer) -> None:
    append(transfer.source, 4 * CHUNK)
    copy(transfer, Unwatched())
    compare(transfer, Unwatched())
    drop(transfer)
    assert sorted(path.name for path in transfer.source.parent.iterdir()) == ["memory"]
    transfer.source.write_bytes(os.urandom(4 * CHUNK))

    assert copy(transfer, Unwatched()).reused_bytes == 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PASSES)
def test_whatever_was_brought_before_the_end_is_the_same(transfer: Transfer, passes: list[tuple[int, str]]) -> None:
    drop(transfer)
    transfer.source.unlink(missing_ok=True)
    for length, how in passes:
        append(transfer.source, length)
        if how != "not brought":
            copy(transfer, Unwatched())
        if how == "compared":
            compare(transfer, Unwatched())
    write_head_again(transfer.source)
    copy(transfer, Unwatched())
    assert compare(transfer, Unwatched()).recopied_chunks == 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_a_beginning_is_served_in_place_of_the_shorter_one_before_and_the_whole_beside_it(tmp_path: Path) -> None:
    needs("qemu-nbd")
    memory, tls = tmp_path / "memory", certificates(tmp_path / "tls")
    append(memory, 3 * CHUNK)
    exports = Exports(ExportAddress("127.0.0.1", tls))

    def brought(place: Place) -> int:
        served = Place(place.at, place.format, tls, known_as=place.known_as)
        transfer = Transfer(served, Place(str(tmp_path / "part")), tmp_path / "bookmarks", grows=True)
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).recopied_chunks == 0
        return copied.copied_bytes

    try:
        first = exports.serve_beginning("abcd2345", memory, 2 * CHUNK, "host1")
        append(memory, 2 * CHUNK)
        assert brought(first) == 2 * CHUNK
        assert brought(exports.serve_beginning("abcd2345", memory, 5 * CHUNK, "host1")) == 4 * CHUNK
        with pytest.raises(SourceUnreadable):
            brought(first)
        append(memory, CHUNK)
        assert brought(exports.serve("abcd2345", memory, "host1")) == 2 * CHUNK
        assert (tmp_path / "part").read_bytes() == memory.read_bytes()
    finally:
        exports.close()
