"""Transfers on xfs and btrfs, between them, and on file systems that are full, read-only or broken."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.filesystems import MIB, extents, mounted, place, write_at

from vmferry.errors import DestinationFull, DestinationUnwritable, SourceUnreadable
from vmferry.transfer import CHUNK, Transfer, Unwatched, compare, copy, drop
from vmferry.transfer.endpoints.reflink import same_blocks
from vmferry.transfer.ranges import align

GIB = 1024 * MIB


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("xfs"), "xfs", 512 * MIB) as place:
        yield place


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("btrfs"), "btrfs", 512 * MIB) as place:
        yield place


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    return tmp_path


def sparse_disk(path: Path, size: int = 100 * GIB) -> None:
    """A few MiB of data spread over a large disk."""
    for n in range(12):
        write_at(path, random.Random(n).randbytes(MIB // 2 + n * 4096), n * (size // 12) // 4096 * 4096)
    os.truncate(path, size)


def data_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [os.pread(file.fileno(), r.length, r.start) for r in extents(path)]


@contextmanager
def prepared(source: Path, destination: Path, state: Path) -> Iterator[Transfer]:
    transfer = Transfer(source / "disk.img", destination / ".vmferry-1-disk", state / "bookmarks")
    sparse_disk(transfer.source)
    try:
        yield transfer
    finally:
        drop(transfer)
        transfer.source.unlink()


WAYS = [(a, b) for a in ("ext4", "xfs", "btrfs") for b in ("ext4", "xfs", "btrfs") if a != b or a == "ext4"]


@pytest.mark.parametrize(("source", "destination"), WAYS)
def test_between_file_systems_content_and_extents_are_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, destination: str
) -> None:
    with prepared(place(request, source), place(request, destination), tmp_path) as transfer:
        copied = copy(transfer, Unwatched())
        compared = compare(transfer, Unwatched())
        assert copied.method == "direct"
        assert (copied.virtual_bytes, compared.root_hash) == (100 * GIB, copied.root_hash)
        assert extents(transfer.destination) == extents(transfer.source)
        assert data_of(transfer.destination) == data_of(transfer.source)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_on_one_file_system_blocks_are_shared_and_that_is_the_proof(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    there = place(request, kind)
    with prepared(there, there, tmp_path) as transfer:
        copied = copy(transfer, Unwatched())
        assert copied.method == "reflink"
        with transfer.source.open("rb") as a, transfer.destination.open("rb") as b:
            assert same_blocks(a.fileno(), b.fileno())
        compared = compare(transfer, Unwatched())
        assert (compared.recopied_chunks, compared.root_hash) == (0, copied.root_hash)
        assert compared.bytes == copied.data_bytes


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_shared_copy_that_was_written_to_is_no_proof_and_is_mended(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    there = place(request, kind)
    with prepared(there, there, tmp_path) as transfer:
        copy(transfer, Unwatched())
        write_at(transfer.destination, b"\xff" * 10, 5)
        assert compare(transfer, Unwatched()).recopied_chunks == 1
        assert data_of(transfer.destination) == data_of(transfer.source)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_reflink_has_the_same_hash_as_a_copy(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    there = place(request, kind)
    with prepared(there, there, tmp_path) as transfer:
        far = Transfer(transfer.source, tmp_path / "far", tmp_path / "bookmarks-far")
        assert copy(transfer, Unwatched()).root_hash == copy(far, Unwatched()).root_hash


def test_a_full_destination_is_named_and_the_source_is_as_before(tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    write_at(source, random.Random(1).randbytes(24 * MIB), 0)
    before = source.read_bytes()
    with mounted(tmp_path, "ext4", 16 * MIB) as small:
        transfer = Transfer(source, small / "disk", tmp_path / "bookmarks")
        with pytest.raises(DestinationFull, match="no space left"):
            copy(transfer, Unwatched())
        assert source.read_bytes() == before
        drop(transfer)
        assert not transfer.destination.exists()


def test_a_full_state_folder_is_named_too(tmp_path: Path) -> None:
    source, state = tmp_path / "disk.img", tmp_path / "state"
    write_at(source, b"content", 0)
    state.mkdir()
    # tmpfs, because ext4 keeps a reserve that even root's last write does not use up
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(state)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root to mount a tmpfs")
    try:
        (state / "filler").write_bytes(bytes(8192))
        transfer = Transfer(source, tmp_path / "disk", state / "bookmarks")
        with pytest.raises(DestinationFull, match="bookmarks"):
            copy(transfer, Unwatched())
        assert not transfer.destination.exists()
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_a_read_only_destination_is_named_and_no_bookmarks_stay(tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    write_at(source, b"content", 0)
    with mounted(tmp_path, "ext4", 16 * MIB) as small:
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        transfer = Transfer(source, small / "disk", tmp_path / "bookmarks")
        with pytest.raises(DestinationUnwritable, match="Read-only"):
            copy(transfer, Unwatched())
        assert not transfer.bookmarks.exists()


@pytest.mark.slow
def test_an_unreadable_range_of_the_source_is_named(tmp_path: Path) -> None:
    """The disk under the source's file system ends half way, so reads behind that fail with EIO."""
    with mounted(tmp_path, "ext4", 64 * MIB) as broken:
        source = broken / "disk.img"
        write_at(source, random.Random(1).randbytes(40 * MIB), 0)
        os.truncate(tmp_path / "ext4.image", 20 * MIB)
        transfer = Transfer(source, tmp_path / "disk", tmp_path / "bookmarks")
        try:
            with pytest.raises(SourceUnreadable, match="Input/output error"):
                copy(transfer, Unwatched())
        finally:
            os.truncate(tmp_path / "ext4.image", 64 * MIB)


def test_holes_between_pages_widen_no_extent_by_more_than_a_page(xfs: Path, tmp_path: Path) -> None:
    source = xfs / "pages.img"
    source.touch()
    os.truncate(source, 2 * CHUNK)
    for n in range(0, 40, 2):
        write_at(source, b"x", n * 4096 + 17)
    transfer = Transfer(source, tmp_path / "disk", tmp_path / "bookmarks")
    copy(transfer, Unwatched())
    assert extents(transfer.destination) == list(align(extents(source), 4096, 2 * CHUNK))
    source.unlink()
