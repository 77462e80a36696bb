"""Transfers between real files on the disk of the tests."""

import errno
import fcntl
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmferry.errors import (
    BookmarksDamaged,
    Cancelled,
    DestinationExists,
    DestinationUnwritable,
    SourceChanged,
    SourceUnreadable,
    VmferryError,
)
from vmferry.transfer import CHUNK, Transfer, Unwatched, compare, copy, drop, forget, root_hash_of
from vmferry.transfer.endpoints.raw_file import RawFile
from vmferry.transfer.engine import copy_loop as copying_module
from vmferry.transfer.ranges import Range

pytestmark = pytest.mark.slow


PAGE = 4096


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    return Transfer(tmp_path / "disk.img", tmp_path / ".vmferry-1-disk.img", tmp_path / "state" / "bookmarks")


def write_at(path: Path, content: bytes, offset: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
    os.pwrite(fd, content, offset)
    os.fsync(fd)
    os.close(fd)


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def sparse_disk(path: Path) -> None:
    """About 9 MiB of data in 64 MiB: at the ends, across a chunk border, in single pages, zeros as data."""
    write_at(path, noise(2 * CHUNK + 100_000), 0)
    write_at(path, noise(300_000), 4 * CHUNK - 150_000)
    for n in range(20):
        write_at(path, noise(PAGE), 6 * CHUNK + n * 3 * PAGE)
    write_at(path, bytes(CHUNK), 9 * CHUNK)
    write_at(path, noise(1), 16 * CHUNK - 1)


def extents(path: Path) -> list[Range]:
    raw = RawFile(path, os.O_RDONLY)
    found = list(raw.extents(Range(0, path.stat().st_size), path.stat().st_size))
    raw.close()
    return found


def flip(path: Path, offset: int) -> None:
    before = path.read_bytes()[offset]
    write_at(path, bytes([before ^ 1]), offset)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65536, CHUNK - 1, CHUNK, CHUNK + 513, 2 * CHUNK])
def test_a_file_of_any_size_arrives(transfer: Transfer, size: int) -> None:
    write_at(transfer.source, noise(size), 0)
    copied = copy(transfer, Unwatched())
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()
    assert (copied.virtual_bytes, copied.data_bytes, copied.reused_bytes) == (size, size, 0)
    assert compare(transfer, Unwatched()).root_hash == copied.root_hash
    assert root_hash_of(transfer.source, Unwatched()) == copied.root_hash


@pytest.mark.parametrize("size", [1, CHUNK, 10 * CHUNK + 77])
def test_a_file_that_is_one_hole_stays_one_but_for_the_block_that_tells_the_sectors(
    transfer: Transfer, size: int
) -> None:
    held = PAGE if size > PAGE and size % PAGE else 0
    transfer.source.touch()
    os.truncate(transfer.source, size)
    copied = copy(transfer, Unwatched())
    compared = compare(transfer, Unwatched())
    assert transfer.destination.stat().st_size == size
    assert transfer.destination.stat().st_blocks * 512 == held
    assert (copied.data_bytes, compared.bytes) == (0, held)


def test_thin_stays_thin_to_the_page_and_zeros_in_data_become_holes(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copied = copy(transfer, Unwatched())
    zeros = Range(9 * CHUNK, 10 * CHUNK)
    assert zeros in extents(transfer.source)
    assert extents(transfer.destination) == [r for r in extents(transfer.source) if r != zeros]
    assert copied.copied_bytes == copied.data_bytes - CHUNK
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_preallocated_space_counts_as_hole(transfer: Transfer) -> None:
    write_at(transfer.source, noise(PAGE), 0)
    fd = os.open(transfer.source, os.O_WRONLY)
    os.posix_fallocate(fd, 0, 3 * CHUNK)
    os.close(fd)
    assert copy(transfer, Unwatched()).data_bytes == PAGE


def test_mode_and_owner_are_kept(transfer: Transfer) -> None:
    write_at(transfer.source, b"x", 0)
    transfer.source.chmod(0o640)
    if os.getuid() == 0:
        os.chown(transfer.source, 64055, 107)
    copy(transfer, Unwatched())
    kept, wanted = transfer.destination.stat(), transfer.source.stat()
    assert (kept.st_mode, kept.st_uid, kept.st_gid) == (wanted.st_mode, wanted.st_uid, wanted.st_gid)


def test_an_existing_file_is_never_written_and_never_dropped(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    write_at(transfer.destination, b"somebody's", 0)
    with pytest.raises(DestinationExists):
        copy(transfer, Unwatched())
    drop(transfer)
    assert transfer.destination.read_bytes() == b"somebody's"


def test_a_link_at_the_destination_is_not_followed(transfer: Transfer, tmp_path: Path) -> None:
    sparse_disk(transfer.source)
    transfer.destination.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DestinationExists):
        copy(transfer, Unwatched())
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_put_in_place_of_ours_is_left_alone(transfer: Transfer, tmp_path: Path) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    write_at(tmp_path / "other", b"somebody's", 0)
    (tmp_path / "other").rename(transfer.destination)
    with pytest.raises(DestinationExists):
        copy(transfer, Unwatched())
    with pytest.raises(DestinationUnwritable):
        compare(transfer, Unwatched())
    drop(transfer)
    assert transfer.destination.read_bytes() == b"somebody's"


def test_drop_removes_all_traces_and_may_be_repeated(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    drop(transfer)
    drop(transfer)
    assert not transfer.destination.exists()
    assert not transfer.bookmarks.exists()


def test_forget_keeps_the_destination(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    forget(transfer)
    forget(transfer)
    assert transfer.destination.exists()
    assert not transfer.bookmarks.exists()


def test_a_finished_copy_called_again_keeps_everything(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    first = copy(transfer, Unwatched())
    again = copy(transfer, Unwatched())
    assert (again.copied_bytes, again.reused_bytes) == (0, first.data_bytes)
    assert again.root_hash == first.root_hash


@pytest.mark.parametrize("offset", [10, 3 * CHUNK, 9 * CHUNK + 5, 16 * CHUNK - 1])
def test_compare_finds_a_flipped_bit_in_data_or_hole_and_mends_it(transfer: Transfer, offset: int) -> None:
    sparse_disk(transfer.source)
    copied = copy(transfer, Unwatched())
    flip(transfer.destination, offset)
    compared = compare(transfer, Unwatched())
    assert compared.recopied_chunks == 1
    assert compared.root_hash == copied.root_hash == root_hash_of(transfer.destination, Unwatched())
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_compare_mends_a_destination_that_lost_its_end(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    os.truncate(transfer.destination, CHUNK)
    assert compare(transfer, Unwatched()).recopied_chunks > 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_compare_before_the_copy_is_whole_is_refused(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    with pytest.raises(Cancelled):
        copy(transfer, CancelAfter(2, transfer))
    with pytest.raises(BookmarksDamaged):
        compare(transfer, Unwatched())


class CancelAfter(Unwatched):
    """Cancels once a number of chunks is bookmarked."""

    def __init__(self, chunks: int, transfer: Transfer) -> None:
        super().__init__()
        self._size = 64 + 48 * (1 + chunks)
        self._transfer = transfer

    def check(self) -> None:
        if self._transfer.bookmarks.exists() and self._transfer.bookmarks.stat().st_size >= self._size:
            raise Cancelled


@pytest.fixture
def each_chunk_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying_module, "BATCH_CHUNKS", 1)


@pytest.mark.usefixtures("each_chunk_recorded")
def test_after_cancel_a_later_copy_goes_on(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    before = transfer.source.read_bytes()
    with pytest.raises(Cancelled):
        copy(transfer, CancelAfter(1, transfer), streams=1)
    copied = copy(transfer, Unwatched())
    assert copied.reused_bytes >= CHUNK
    assert copied.copied_bytes > 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes() == before


@pytest.mark.usefixtures("each_chunk_recorded")
def test_what_was_damaged_meanwhile_is_not_trusted_on_resume(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    with pytest.raises(Cancelled):
        copy(transfer, CancelAfter(2, transfer), streams=1)
    flip(transfer.destination, 5)
    write_at(transfer.destination, b"stray", 12 * CHUNK)
    copy(transfer, Unwatched())
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()
    assert compare(transfer, Unwatched()).recopied_chunks == 0


def test_damaged_bookmarks_begin_again_with_the_file_that_is_provably_ours(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    write_at(transfer.bookmarks, b"?", 20)
    assert copy(transfer, Unwatched()).reused_bytes == 0
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_bookmarks_without_any_proof_leave_the_file_alone(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    transfer.bookmarks.write_bytes(b"\0" * 300)
    with pytest.raises(DestinationExists):
        copy(transfer, Unwatched())


def change_content(path: Path) -> None:
    write_at(path, b"changed", 100)


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def shrink(path: Path) -> None:
    os.truncate(path, CHUNK + 5)


def replace(path: Path) -> None:
    os.link(path, path.with_suffix(".old"))
    path.unlink()
    write_at(path, path.with_suffix(".old").read_bytes(), 0)


changes = pytest.mark.parametrize("change", [change_content, grow, shrink, replace])


@changes
def test_a_source_changed_while_it_is_copied_is_found(transfer: Transfer, change: Callable[[Path], None]) -> None:
    class ChangeOnce(Unwatched):
        changed = False

        def check(self) -> None:
            if not self.changed and transfer.destination.exists():
                self.changed = True
                change(transfer.source)

    sparse_disk(transfer.source)
    with pytest.raises(SourceChanged):
        copy(transfer, ChangeOnce())


@changes
@pytest.mark.parametrize("act", [copy, compare])
def test_a_source_changed_between_two_calls_is_found(
    transfer: Transfer, change: Callable[[Path], None], act: Callable[[Transfer, Unwatched], object]
) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    change(transfer.source)
    with pytest.raises(SourceChanged):
        act(transfer, Unwatched())


def test_a_new_owner_is_no_change(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    copy(transfer, Unwatched())
    transfer.source.chmod(0o600)
    compare(transfer, Unwatched())


@pytest.mark.usefixtures("each_chunk_recorded")
def test_a_new_limit_counts_in_the_middle_of_a_copy(transfer: Transfer) -> None:
    """Under the first limit the copy would take a day; it ends because the limit is lifted."""

    class Lifting(Unwatched):
        def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
            self.throttle.set_limit(None)

    sparse_disk(transfer.source)
    copy(transfer, Lifting(limit_bytes_s=100))
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def no_direct_open(monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def refuse(path: Path | str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT == os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)


def no_direct_write(monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pwritev

    def refuse(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", refuse)


@pytest.mark.parametrize("refuse", [no_direct_open, no_direct_write])
def test_a_file_system_without_o_direct_is_copied_and_compared_all_the_same(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[pytest.MonkeyPatch], None]
) -> None:
    sparse_disk(transfer.source)
    refuse(monkeypatch)
    assert copy(transfer, Unwatched()).method == "buffered"
    flip(transfer.destination, 7)
    assert compare(transfer, Unwatched()).recopied_chunks == 1
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


FAULTS = [
    ("preadv", errno.EIO, SourceUnreadable),
    ("pwritev", errno.EIO, DestinationUnwritable),
    ("fdatasync", errno.EIO, DestinationUnwritable),
]


@pytest.mark.parametrize(("call", "code", "error"), FAULTS)
def test_a_failing_disk_is_named_and_the_copy_can_go_on_when_it_is_mended(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[VmferryError]
) -> None:
    sparse_disk(transfer.source)

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken, pytest.raises(error, match="Input/output error"):
        broken.setattr(os, call, fail)
        copy(transfer, Unwatched())
    copy(transfer, Unwatched())
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()


def test_a_source_that_is_not_there_says_so(transfer: Transfer) -> None:
    with pytest.raises(SourceUnreadable, match="No such file"):
        copy(transfer, Unwatched())


def test_a_missing_folder_at_the_destination_says_so_and_leaves_no_bookmarks(transfer: Transfer) -> None:
    sparse_disk(transfer.source)
    astray = Transfer(transfer.source, transfer.destination.parent / "none" / "disk", transfer.bookmarks)
    with pytest.raises(DestinationUnwritable, match="No such file"):
        copy(astray, Unwatched())
    assert not transfer.bookmarks.exists()


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() - before == set()  # fewer is no fault: what an earlier test dropped may be collected now


def descriptors() -> set[str]:
    """Number and target of each descriptor open in this process, but for the listing's own."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(f"{link.name} {link.readlink()}")
    return found
