"""Which way a copy takes."""

from pathlib import Path

import pytest

from vmferry.transfer import AnyPlace, Place, Unwatched
from vmferry.transfer import standalone as standalone_copy
from vmferry.transfer.endpoints import location
from vmferry.transfer.endpoints.location import Location, locate
from vmferry.transfer.endpoints.route import End, Opening, PlaceKind, openings
from vmferry.transfer.ranges import Range, gaps

FILE_QCOW2, FILE_RAW = End(PlaceKind.FILE, "qcow2"), End(PlaceKind.FILE, "raw")


@pytest.mark.parametrize("format_", ["raw", "qcow2", "vhdx"])
def test_the_same_format_from_file_to_file_goes_byte_for_byte(format_: str) -> None:
    assert openings(End(PlaceKind.FILE, format_), End(PlaceKind.FILE, format_)) == (Opening.FILE, Opening.FILE)


@pytest.mark.parametrize(
    ("source", "destination", "ways"),
    [
        (FILE_QCOW2, FILE_RAW, (Opening.EXPORT, Opening.FILE)),
        (FILE_RAW, FILE_QCOW2, (Opening.FILE, Opening.EXPORT)),
        (FILE_QCOW2, End(PlaceKind.DEVICE, "qcow2"), (Opening.EXPORT, Opening.EXPORT)),
        (FILE_RAW, End(PlaceKind.DEVICE, "raw"), (Opening.FILE, Opening.DEVICE)),
        (End(PlaceKind.NBD, "raw"), FILE_RAW, (Opening.NBD, Opening.FILE)),
        (End(PlaceKind.NBD, "qcow2"), FILE_RAW, (Opening.EXPORT, Opening.FILE)),
        (FILE_RAW, End(PlaceKind.ISCSI, "raw"), (Opening.FILE, Opening.EXPORT)),
        (End(PlaceKind.NFS, "raw"), End(PlaceKind.NFS, "raw"), (Opening.EXPORT, Opening.EXPORT)),
    ],
)
def test_all_else_goes_by_content(source: End, destination: End, ways: tuple[Opening, Opening]) -> None:
    assert openings(source, destination) == ways


@pytest.mark.parametrize(
    ("ranges", "left"),
    [
        ([], [Range(10, 20)]),
        ([Range(10, 20)], []),
        ([Range(10, 12), Range(12, 14)], [Range(14, 20)]),
        ([Range(12, 14), Range(16, 18)], [Range(10, 12), Range(14, 16), Range(18, 20)]),
    ],
)
def test_gaps_are_what_the_ranges_leave(ranges: list[Range], left: list[Range]) -> None:
    assert list(gaps(ranges, Range(10, 20))) == left


def test_a_copy_asks_each_of_its_places_once_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AnyPlace] = []

    def counted(where: AnyPlace) -> Location:
        asked.append(where)
        return locate(where)

    monkeypatch.setattr(location, "locate", counted)
    monkeypatch.setattr(standalone_copy, "locate", counted)
    (tmp_path / "disk.img").write_bytes(b"a disk")
    source, destination = Place(str(tmp_path / "disk.img")), Place(str(tmp_path / "new.img"))
    standalone_copy.DiskCopy(source, destination, tmp_path / "state").run(Unwatched(), Unwatched(), 2)
    assert sorted(str(place) for place in asked) == sorted([str(source), str(destination)])
    assert (tmp_path / "new.img").read_bytes() == b"a disk"
