"""Copies from every kind of storage to every other: the same content, resumable, and flipped bits are found."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from tests.support.nbd_servers import loop_device, nbd_on_socket, nbdkit
from tests.support.places import MAKERS, image

from vmferry.errors import (
    BadPlace,
    Cancelled,
    DestinationChanged,
    DestinationExists,
    DestinationInUse,
    DestinationTooSmall,
    ExportFailed,
    SourceChanged,
    SourceInUse,
    VmferryError,
)
from vmferry.transfer import CHUNK, AnyPlace, Place, Transfer, Unwatched, compare, copy, drop, root_hash_of, unchanged
from vmferry.transfer.endpoints import qemu_nbd as exporting_module
from vmferry.transfer.engine import copy_loop as copying_module

pytestmark = pytest.mark.slow

SIZE = 6 * CHUNK
JUNK = b"\xaa" * SIZE


def disk() -> bytes:
    """Noise at the ends and across a border of chunks, zeros as data, and holes."""
    made = bytearray(SIZE)
    for start, length in ((0, 200_000), (2 * CHUNK - 65536, 131_072), (SIZE - 4096, 4096), (4 * CHUNK, 1000)):
        made[start : start + length] = random.Random(start).randbytes(length)
    return bytes(made)


DISK = disk()
STANDING = [kind for kind in MAKERS if kind not in ("file", "qcow2")]


def source_file(folder: Path) -> Path:
    (folder / "from").mkdir()
    return image(folder / "from", DISK)


def moving(source: AnyPlace, destination: AnyPlace, folder: Path) -> Transfer[AnyPlace, AnyPlace]:
    return Transfer(source, destination, folder / "state" / "bookmarks")


def content_of(place: Place, folder: Path) -> bytes:
    """As QEMU sees it."""
    there = folder / "content"
    words = ["qemu-img", "convert", "-f", place.format, "-O", "raw", place.at, str(there)]
    subprocess.run(words, check=True)
    return there.read_bytes()


class CancelAfter(Unwatched):
    """Cancels once a number of chunks is bookmarked."""

    def __init__(self, chunks: int, bookmarks: Path) -> None:
        super().__init__()
        self._size = 64 + 48 * (2 + chunks)
        self._bookmarks = bookmarks

    def check(self) -> None:
        if self._bookmarks.exists() and self._bookmarks.stat().st_size >= self._size:
            raise Cancelled


@pytest.fixture
def each_chunk_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying_module, "BATCH_CHUNKS", 1)


@pytest.mark.parametrize("kind", MAKERS)
def test_from_every_kind_to_a_file(kind: str, tmp_path: Path) -> None:
    with MAKERS[kind](tmp_path, DISK) as made:
        transfer = moving(made.place, Place(str(tmp_path / "copy.raw")), tmp_path)
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).root_hash == copied.root_hash
        assert (tmp_path / "copy.raw").read_bytes() == DISK
        assert unchanged(transfer)


@pytest.mark.parametrize("kind", STANDING)
def test_from_a_file_to_every_kind_whatever_was_there_before(kind: str, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with MAKERS[kind](tmp_path, JUNK) as made:
        transfer = moving(source, made.place, tmp_path)
        copied = copy(transfer, Unwatched())
        compared = compare(transfer, Unwatched())
        assert compared.root_hash == copied.root_hash == root_hash_of(source, Unwatched())
        assert compared.recopied_chunks == 0
    assert made.behind.read_bytes() == DISK
    assert made.behind.stat().st_blocks * 512 <= 2 * CHUNK


@pytest.mark.parametrize("kind", [*STANDING, "file"])
def test_a_qcow2_image_on_every_kind(kind: str, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with MAKERS[kind](tmp_path, JUNK + bytes(CHUNK)) as made:
        at = Place(str(tmp_path / "new.qcow2"), "qcow2") if kind == "file" else Place(made.place.at, "qcow2")
        if made.place.tls:
            at = Place(made.place.at, "qcow2", made.place.tls)
            with pytest.raises(BadPlace, match="only raw"):
                copy(moving(source, at, tmp_path), Unwatched())
            return
        transfer = moving(source, at, tmp_path)
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).root_hash == copied.root_hash
        assert content_of(at, tmp_path) == DISK


@pytest.mark.parametrize("kind", [*STANDING, "qcow2"])
@pytest.mark.usefixtures("each_chunk_recorded")
def test_after_cancel_a_later_copy_goes_on(kind: str, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with MAKERS[kind](tmp_path, JUNK) as made:
        place = Place(str(tmp_path / "new.qcow2"), "qcow2") if kind == "qcow2" else made.place
        transfer = moving(source, place, tmp_path)
        with pytest.raises(Cancelled):
            copy(transfer, CancelAfter(2, transfer.bookmarks), streams=1)
        copied = copy(transfer, Unwatched())
        assert copied.reused_bytes > 0
        assert copied.copied_bytes + copied.reused_bytes <= copied.data_bytes
        assert compare(transfer, Unwatched()).recopied_chunks == 0
        assert root_hash_of(place, Unwatched()) == copied.root_hash


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("offset", [100, 3 * CHUNK + 7])
def test_a_flipped_bit_is_found_and_mended(kind: str, offset: int, tmp_path: Path) -> None:
    """Flipped behind the server's back; in a qcow2 image through another qemu, in data and in a hole."""
    source = source_file(tmp_path)
    with MAKERS[kind](tmp_path, JUNK) as made:
        path = tmp_path / "new"
        place = Place(str(path), made.place.format) if kind in ("file", "qcow2") else made.place
        transfer = moving(source if kind != "file" else Place(str(source)), place, tmp_path)
        copied = copy(transfer, Unwatched())
        if kind == "qcow2":
            write = f"write -P 0x{DISK[offset] ^ 1:x} {offset} 1"
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, str(path)], check=True, capture_output=True)
        else:
            flip(path if kind == "file" else made.behind, offset)
        assert compare(transfer, Unwatched()).recopied_chunks == 1
        assert root_hash_of(place, Unwatched()) == copied.root_hash


def flip(path: Path, offset: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        before = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([before ^ 1]))
        os.fsync(file.fileno())


@pytest.mark.parametrize("format_", ["vmdk", "vhdx", "vpc"])
def test_an_image_of_another_hypervisor_arrives(format_: str, tmp_path: Path) -> None:
    theirs = tmp_path / f"disk.{format_}"
    words = ["qemu-img", "convert", "-f", "raw", "-O", format_, str(source_file(tmp_path)), str(theirs)]
    subprocess.run(words, check=True)
    ours = tmp_path / "disk.qcow2"
    copy(moving(Place(str(theirs), format_), Place(str(ours), "qcow2"), tmp_path), Unwatched())
    subprocess.run(["qemu-img", "compare", "-f", format_, "-F", "qcow2", str(theirs), str(ours)], check=True)


def test_the_options_of_a_qcow2_image_are_carried(tmp_path: Path) -> None:
    options = "cluster_size=128k,lazy_refcounts=on,extended_l2=on,compression_type=zstd"
    source, there = tmp_path / "a.qcow2", image(tmp_path, bytes(2 * SIZE))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(source), str(SIZE)], check=True)
    with nbd_on_socket(there, tmp_path) as url:
        copy(moving(Place(str(source), "qcow2"), Place(url, "qcow2"), tmp_path), Unwatched())
        told = subprocess.run(
            ["qemu-img", "info", "--output=json", "-f", "qcow2", url], capture_output=True, check=True
        )
    made = json.loads(told.stdout)
    carried = made["format-specific"]["data"]
    assert made["cluster-size"] == 128 * 1024
    assert (carried["lazy-refcounts"], carried["extended-l2"], carried["compression-type"]) == (True, True, "zstd")


def test_a_backing_file_is_read_while_another_has_the_overlay_open(tmp_path: Path) -> None:
    """As with a VM that runs on its overlay: the frozen base may be read."""
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source_file(tmp_path)), str(base)]
    subprocess.run(words, check=True)
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay)]
    subprocess.run(words, check=True)
    with nbd_on_socket(overlay, tmp_path, "-f", "qcow2"):
        copy(moving(Place(str(base), "qcow2"), Place(str(tmp_path / "copy")), tmp_path), Unwatched())
    assert (tmp_path / "copy").read_bytes() == DISK


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_a_source_that_is_written_by_another_is_refused(
    format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting_module, "LOCKED_S", 0.0)
    with MAKERS["file" if format_ == "raw" else format_](tmp_path, DISK) as made:
        transfer = moving(made.place, Place(str(tmp_path / "copy")), tmp_path)
        with nbd_on_socket(Path(made.place.at), tmp_path, "-f", format_), pytest.raises((SourceInUse, ExportFailed)):
            copy(transfer, Unwatched())
        assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_a_device_that_is_in_use_is_not_written(format_: str, tmp_path: Path) -> None:
    source, behind = source_file(tmp_path), image(tmp_path, bytes(8 * SIZE))
    subprocess.run(["mkfs.ext4", "-q", str(behind)], check=True)
    (tmp_path / "mounted").mkdir()
    with loop_device(behind) as device:
        subprocess.run(["mount", str(device), str(tmp_path / "mounted")], check=True)
        try:
            before = behind.read_bytes()
            with pytest.raises(DestinationInUse, match="mounted"):
                copy(moving(source, Place(str(device), format_), tmp_path), Unwatched())
            assert behind.read_bytes() == before
        finally:
            subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


def test_a_device_that_qemu_has_open_is_not_written(tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with loop_device(image(tmp_path, JUNK)) as device:
        at = tmp_path / "device.img"
        at.symlink_to(device)
        with nbd_on_socket(at, tmp_path), pytest.raises(DestinationInUse):
            copy(moving(source, Place(str(device)), tmp_path), Unwatched())
        assert device.read_bytes() == JUNK


@pytest.mark.parametrize("kind", STANDING)
def test_what_is_too_small_is_not_written(kind: str, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with MAKERS[kind](tmp_path, JUNK[:-CHUNK]) as made, pytest.raises(DestinationTooSmall):
        copy(moving(source, made.place, tmp_path), Unwatched())
    assert made.behind.read_bytes() == JUNK[:-CHUNK]


def test_an_image_needs_room_for_its_data_only(tmp_path: Path) -> None:
    source = source_file(tmp_path)
    for size, fits in ((CHUNK, True), (CHUNK // 8, False)):
        (tmp_path / str(size)).mkdir()
        with MAKERS["device"](tmp_path / str(size), JUNK[:size]) as made:
            transfer = moving(source, Place(made.place.at, "qcow2"), tmp_path / str(size))
            if fits:
                copy(transfer, Unwatched())
                continue
            with pytest.raises(DestinationTooSmall):
                copy(transfer, Unwatched())
        assert made.behind.read_bytes() == JUNK[:size]


def test_what_is_larger_keeps_what_lies_behind(tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with MAKERS["device"](tmp_path, JUNK + JUNK) as made:
        transfer = moving(source, made.place, tmp_path)
        copy(transfer, Unwatched())
        compare(transfer, Unwatched())
    assert made.behind.read_bytes() == DISK + JUNK


def test_an_odd_tail_is_padded_to_the_block_of_the_server(tmp_path: Path) -> None:
    source = tmp_path / "odd.img"
    source.write_bytes(DISK[: CHUNK + 1000])
    words = ["--filter=blocksize-policy", "memory", "8M", "blocksize-minimum=4096", "blocksize-error-policy=error"]
    with nbdkit(tmp_path, *words) as url:
        transfer = moving(source, Place(url), tmp_path)
        copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).recopied_chunks == 0


@pytest.mark.parametrize("kind", STANDING)
def test_drop_forgets_what_was_there_before_us_and_leaves_it(kind: str, tmp_path: Path) -> None:
    source = source_file(tmp_path)
    with MAKERS[kind](tmp_path, JUNK) as made:
        transfer = moving(source, made.place, tmp_path)
        copy(transfer, Unwatched())
        drop(transfer)
        drop(transfer)
        assert not transfer.bookmarks.exists()
    assert made.behind.read_bytes() == DISK


def test_drop_removes_an_image_that_we_made(tmp_path: Path) -> None:
    transfer = moving(source_file(tmp_path), Place(str(tmp_path / "new.qcow2"), "qcow2"), tmp_path)
    copy(transfer, Unwatched())
    drop(transfer)
    assert not (tmp_path / "new.qcow2").exists()


def test_another_device_under_the_same_bookmarks_is_not_written(tmp_path: Path) -> None:
    source, other = source_file(tmp_path), tmp_path / "other.img"
    other.write_bytes(JUNK)
    with loop_device(image(tmp_path, JUNK)) as first, loop_device(other) as second:
        copy(moving(source, Place(str(first)), tmp_path), Unwatched())
        with pytest.raises(DestinationChanged):
            copy(moving(source, Place(str(second)), tmp_path), Unwatched())
    assert other.read_bytes() == JUNK


def test_an_existing_image_is_never_made_anew(tmp_path: Path) -> None:
    there = tmp_path / "there.qcow2"
    there.write_bytes(b"somebody's")
    with pytest.raises(DestinationExists):
        copy(moving(source_file(tmp_path), Place(str(there), "qcow2"), tmp_path), Unwatched())
    assert there.read_bytes() == b"somebody's"


@pytest.mark.parametrize("change", ["image", "backing file"])
def test_an_image_that_changed_between_two_calls_is_found(change: str, tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), str(SIZE)], check=True)
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(top)]
    subprocess.run(words, check=True)
    transfer = moving(Place(str(top), "qcow2"), Place(str(tmp_path / "copy")), tmp_path)
    copy(transfer, Unwatched())
    changed = str(top if change == "image" else base)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 4096", changed], check=True, capture_output=True)
    assert not unchanged(transfer)
    with pytest.raises(SourceChanged):
        copy(transfer, Unwatched())
    with pytest.raises(SourceChanged):
        compare(transfer, Unwatched())


def test_only_what_can_be_written_is_a_destination(tmp_path: Path) -> None:
    with pytest.raises(BadPlace, match="raw and qcow2"):
        copy(moving(source_file(tmp_path), Place(str(tmp_path / "new.vmdk"), "vmdk"), tmp_path), Unwatched())


def test_qemu_nbd_that_is_killed_is_named_and_the_copy_goes_on_later(tmp_path: Path) -> None:
    """The server that dies is our own, in the middle of the copy."""

    class KillOnce(Unwatched):
        def check(self) -> None:
            found = subprocess.run(["pgrep", "-P", str(os.getpid()), "qemu-nbd"], capture_output=True, text=True)
            for each in found.stdout.split():
                os.kill(int(each), 9)

    transfer = moving(source_file(tmp_path), Place(str(tmp_path / "new.qcow2"), "qcow2"), tmp_path)
    with pytest.raises(VmferryError, match="qemu-nbd ended with -9"):
        copy(transfer, KillOnce(), streams=1)
    copy(transfer, Unwatched())
    assert compare(transfer, Unwatched()).recopied_chunks == 0
    assert content_of(Place(str(tmp_path / "new.qcow2"), "qcow2"), tmp_path) == DISK
