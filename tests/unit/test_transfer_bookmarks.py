"""Bookmarks: whatever happens to the file, no record is believed that was not written."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.errors import BookmarksDamaged
from vmferry.transfer.bookmarks import Journal, Record, RecordKind, SourceIdentity, proved, read

SOURCE = SourceIdentity(10**12, 77, 1_700_000_000_123_456_789)
HEADER, RECORD = 64, 48
records = st.lists(
    st.builds(
        Record,
        st.sampled_from([RecordKind.DATA, RecordKind.ZERO]),
        st.integers(0, 2**40),
        st.binary(min_size=32, max_size=32),
    ),
    max_size=12,
)


def written(path: Path, content: list[Record]) -> bytes:
    journal = Journal.begin(path, SOURCE)
    for record in (Record(RecordKind.CLAIM, 4711), *content):
        journal.note(record)
    journal.close()
    return path.read_bytes()


def believed(content: list[Record]) -> dict[int, bytes | None]:
    return {r.number: r.digest if r.kind is RecordKind.DATA else None for r in content}


def with_file(content: list[Record], harm: Callable[[bytes], bytes]) -> tuple[Path, TemporaryDirectory[str]]:
    folder = TemporaryDirectory()
    path = Path(folder.name) / "bookmarks"
    path.write_bytes(harm(written(path, content)))
    return path, folder


@settings(deadline=None)
@given(records)
def test_what_was_written_is_read(content: list[Record]) -> None:
    path, folder = with_file(content, lambda whole: whole)
    with folder:
        found = read(path)
    assert found is not None
    assert (found.source, found.claim, found.whole) == (SOURCE, 4711, False)
    assert found.chunks == believed(content)


@settings(deadline=None)
@given(records, st.data())
def test_a_file_cut_anywhere_yields_exactly_its_whole_records(content: list[Record], data: st.DataObject) -> None:
    length = data.draw(st.integers(0, HEADER + RECORD * (len(content) + 1)))
    path, folder = with_file(content, lambda whole: whole[:length])
    with folder:
        found = read(path)
    assert found is not None
    left = max(0, (length - HEADER) // RECORD)
    assert found.chunks == believed(content[: max(0, left - 1)])
    assert found.claim == (4711 if left else None)
    assert found.source == (SOURCE if length >= HEADER else None)


@settings(deadline=None)
@given(records, st.data())
def test_a_flipped_bit_ends_the_records_before_it(content: list[Record], data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, (HEADER + RECORD * (len(content) + 1)) * 8 - 1))

    def flip(whole: bytes) -> bytes:
        harmed = bytearray(whole)
        harmed[bit // 8] ^= 1 << bit % 8
        return bytes(harmed)

    path, folder = with_file(content, flip)
    with folder:
        found = read(path)
    assert found is not None
    if bit // 8 < HEADER:
        assert found.source is None
        with pytest.raises(BookmarksDamaged):
            proved(path, found)
    else:
        hurt = (bit // 8 - HEADER) // RECORD
        assert found.chunks == believed(content[: max(0, hurt - 1)])


@settings(deadline=None)
@given(st.binary(max_size=500))
def test_any_bytes_are_read_without_an_error_and_prove_nothing(noise: bytes) -> None:
    path, folder = with_file([], lambda _: noise)
    with folder:
        found = read(path)
    assert found is not None
    assert (found.source, found.claim, found.chunks) == (None, None, {})


def test_going_on_behind_a_torn_record_drops_it(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks"
    first, lost, later = (Record(RecordKind.DATA, n, bytes([n]) * 32) for n in (1, 2, 3))
    path.write_bytes(written(path, [first, lost])[:-5])
    found = read(path)
    assert found is not None
    journal = Journal.resume(path, found)
    journal.append(later)
    journal.close()
    again = read(path)
    assert again is not None
    assert again.chunks == believed([first, later])


def test_no_file_is_no_bookmarks(tmp_path: Path) -> None:
    assert read(tmp_path / "none") is None
