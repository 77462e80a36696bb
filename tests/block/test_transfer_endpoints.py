"""One suite for all endpoints: what the copy loop needs of each, on real storage."""

import mmap
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support.places import MAKERS

from vmferry.errors import DestinationUnwritable, ExportFailed, SourceUnreadable, VmferryError
from vmferry.transfer import CHUNK, Place
from vmferry.transfer.endpoints.destination import OpenedDestination
from vmferry.transfer.endpoints.interface import Can, Destination, Source
from vmferry.transfer.endpoints.location import locate
from vmferry.transfer.endpoints.route import opening
from vmferry.transfer.endpoints.source import opened_alone
from vmferry.transfer.ranges import Range, total

SIZE = 3 * CHUNK
NOISE = random.Random(5).randbytes(300_000 // 4096 * 4096)
AT = CHUNK - 8 * 4096
CONTENT = bytes(AT) + NOISE + bytes(SIZE - AT - len(NOISE))

every_kind = pytest.mark.parametrize("kind", MAKERS)


def buffer(length: int, content: bytes = b"") -> memoryview:
    """Aligned, as the loop's own are."""
    made = memoryview(mmap.mmap(-1, max(1, length)))[:length]
    made[: len(content)] = content
    return made


@contextmanager
def to_read(kind: str, folder: Path) -> Iterator[Source]:
    with MAKERS[kind](folder, CONTENT) as made, opened_alone(made.place, 2) as found:
        yield found.source


@contextmanager
def to_write(kind: str, folder: Path, content: bytes = CONTENT) -> Iterator[Destination]:
    with ExitStack() as stack:
        place = stack.enter_context(MAKERS[kind](folder, content)).place
        yield stack.enter_context(_there(place, len(content)).opened(2)).destination


def _there(place: Place, size: int) -> OpenedDestination:
    location = locate(place)
    return OpenedDestination(location, opening(location.end), size)


def back(destination: Destination, where: Range) -> bytes:
    into = buffer(where.length)
    destination.read_back(where.start, into)
    return bytes(into)


@pytest.mark.slow
@every_kind
def test_what_is_there_is_read(kind: str, tmp_path: Path) -> None:
    with to_read(kind, tmp_path) as source:
        into = buffer(CHUNK)
        for start in range(0, SIZE, CHUNK):
            source.read(start, into)
            assert bytes(into) == CONTENT[start : start + CHUNK]
        assert source.size == SIZE


@every_kind
def test_extents_hold_all_data_and_no_more_than_the_format_needs(kind: str, tmp_path: Path) -> None:
    with to_read(kind, tmp_path) as source:
        found = list(source.extents(Range(0, SIZE)))
        assert found == sorted(found)
        assert any(r.start <= AT and AT + len(NOISE) <= r.end for r in found)
        assert all(r.start % 4096 == r.end % 4096 == 0 for r in found)
        if Can.EXTENTS in source.can:
            assert total(found) <= len(NOISE) + 2 * 65536
        else:
            assert found == [Range(0, SIZE)]


@every_kind
def test_extents_are_cut_to_what_was_asked_for(kind: str, tmp_path: Path) -> None:
    with to_read(kind, tmp_path) as source:
        assert list(source.extents(Range(AT + 4096, AT + 8192))) == [Range(AT + 4096, AT + 8192)]
        assert list(source.extents(Range(0, 0))) == []


@every_kind
def test_what_is_written_is_read_back_and_nothing_beside_it_changes(kind: str, tmp_path: Path) -> None:
    with to_write(kind, tmp_path) as destination:
        destination.write(2 * CHUNK, buffer(8192, b"new" * 2730))
        destination.flush()
        assert back(destination, Range(2 * CHUNK, 2 * CHUNK + 8192))[:8190] == b"new" * 2730
        assert back(destination, Range(AT, AT + len(NOISE))) == NOISE
        assert Can.FLUSH in destination.can


@every_kind
def test_what_is_zeroed_reads_as_zero_and_is_a_hole_where_there_are_holes(kind: str, tmp_path: Path) -> None:
    with to_write(kind, tmp_path, random.Random(1).randbytes(SIZE)) as destination:
        destination.zero(Range(CHUNK, 2 * CHUNK))
        destination.flush()
        assert back(destination, Range(CHUNK, 2 * CHUNK)) == bytes(CHUNK)
        assert back(destination, Range(CHUNK - 4096, CHUNK)) != bytes(4096)
        if Can.EXTENTS in destination.can:
            assert list(destination.extents(Range(0, SIZE))) == [Range(0, CHUNK), Range(2 * CHUNK, SIZE)]


@every_kind
def test_a_read_behind_the_end_is_a_typed_error(kind: str, tmp_path: Path) -> None:
    with to_read(kind, tmp_path) as source, pytest.raises(VmferryError, match=r"at byte|changed"):
        source.read(SIZE + CHUNK, buffer(4096))


@pytest.mark.slow
@every_kind
def test_a_write_behind_the_end_is_a_typed_error(kind: str, tmp_path: Path) -> None:
    if kind == "file":
        pytest.skip("a file grows")
    with to_write(kind, tmp_path) as destination, pytest.raises(VmferryError):
        destination.write(SIZE + CHUNK, buffer(4096))


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (Place("/nowhere/disk"), SourceUnreadable),
        (Place("/nowhere/disk", "qcow2"), ExportFailed),
        (Place("nbd+unix:///?socket=/nowhere"), SourceUnreadable),
        (Place("nbd://127.0.0.1:1/"), SourceUnreadable),
        (Place("iscsi://127.0.0.1:1/iqn.x:y/1"), ExportFailed),
    ],
    ids=str,
)
def test_a_source_that_is_not_there_is_named(place: Place, error: type[VmferryError]) -> None:
    with pytest.raises(error, match=r"nowhere|127\.0\.0\.1"), opened_alone(place, 2):
        pass


def test_a_server_that_is_not_there_is_named_as_destination() -> None:
    place = Place("nbd+unix:///?socket=/nowhere")
    with (
        pytest.raises(DestinationUnwritable, match="nowhere"),
        _there(place, 1).opened(1),
    ):
        pass
