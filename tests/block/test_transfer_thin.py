"""Thin stays thin on every file system and over NBD, large stays quick, and memory stays small."""

import json
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.support.filesystems import MIB, extents, mounted, write_at
from tests.support.nbd_servers import iscsi_target, nbd_on_socket

from vmferry.transfer import AnyPlace, Place, Transfer, Unwatched, compare, copy, root_hash_of

pytestmark = pytest.mark.slow

CLUSTER = 65536
TIB = 1024**4
BOUND_MIB = 300


def scattered(path: Path, size: int) -> None:
    """Single pages and runs of noise, and holes."""
    for n in range(12):
        write_at(path, random.Random(n).randbytes(4096 * (1 + n * n)), size // 12 * n // 65536 * 65536)
    os.truncate(path, size)


OVER = {"nbd": nbd_on_socket, "iscsi": iscsi_target}


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_over_the_network_the_same_extents_are_allocated(kind: str, over: str, tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    scattered(source, 256 * MIB)
    with mounted(tmp_path, kind, 512 * MIB) as there:
        behind = there / "behind.img"
        behind.touch()
        os.truncate(behind, 256 * MIB)
        with OVER[over](behind, tmp_path) as url:
            transfer = Transfer(source, Place(url), tmp_path / "bookmarks")
            copy(transfer, Unwatched())
            assert compare(transfer, Unwatched()).recopied_chunks == 0
        assert extents(behind) == extents(source)


@pytest.mark.parametrize("over", OVER)
def test_a_qcow2_image_over_the_network_is_as_thin_as_its_source(over: str, tmp_path: Path) -> None:
    """Besides its own tables; what a cluster holds is allocated whole."""
    source, behind = tmp_path / "disk.img", tmp_path / "behind.img"
    scattered(source, 256 * MIB)
    behind.touch()
    os.truncate(behind, 256 * MIB)
    with OVER[over](behind, tmp_path) as url:
        transfer = Transfer(Place(str(source)), Place(url, "qcow2"), tmp_path / "bookmarks")
        copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).recopied_chunks == 0
    clusters = {offset // CLUSTER for data in extents(source) for offset in range(data.start, data.end, 4096)}
    assert behind.stat().st_blocks * 512 <= len(clusters) * CLUSTER + 2 * MIB


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_what_was_full_is_as_thin_as_the_source_afterwards(format_: str, tmp_path: Path) -> None:
    """Over NBD, where junk lay before; qcow2 on it holds its tables besides."""
    source, behind = tmp_path / "disk.img", tmp_path / "behind.img"
    scattered(source, 64 * MIB)
    behind.write_bytes(b"\xaa" * 64 * MIB)
    with nbd_on_socket(behind, tmp_path) as url:
        copy(Transfer(source, Place(url), tmp_path / "bookmarks"), Unwatched())
    assert extents(behind) == extents(source)
    image = tmp_path / "image"
    copy(Transfer(Place(str(source)), Place(str(image), format_), tmp_path / "bookmarks-image"), Unwatched())
    spare = 2 * MIB if format_ == "qcow2" else 0
    assert image.stat().st_blocks <= source.stat().st_blocks + spare // 512


@pytest.mark.timeout(60)
@pytest.mark.parametrize("there", ["raw", "qcow2", "nbd"])
def test_a_tebibyte_with_little_data_takes_the_time_of_the_little(there: str, tmp_path: Path) -> None:
    source = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(source), str(TIB)], check=True)
    writes = [word for n in range(8) for word in ("-c", f"write -P {n + 1} {n * (TIB // 8)} 1M")]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(source)], check=True, capture_output=True)
    behind = tmp_path / "behind"
    behind.touch()
    os.truncate(behind, TIB)
    with nbd_on_socket(behind, tmp_path) if there == "nbd" else nullcontext(str(tmp_path / "new")) as at:
        destination = Place(at, "qcow2" if there == "qcow2" else "raw")
        transfer: Transfer[AnyPlace, AnyPlace] = Transfer(
            Place(str(source), "qcow2"), destination, tmp_path / "bookmarks"
        )
        copied = copy(transfer, Unwatched())
        tables = 2 * MIB if there == "qcow2" else 0  # a file of the same format is copied with its tables
        assert 8 * MIB <= copied.copied_bytes <= 8 * MIB + tables
        hashed: AnyPlace = Path(at) if there == "qcow2" else destination  # that of a file is of its bytes
        assert compare(transfer, Unwatched()).root_hash == copied.root_hash == root_hash_of(hashed, Unwatched())


MANY = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from vmferry.transfer import Place, Transfer, Unwatched, compare, copy

folder = Path(sys.argv[1])

def one(n):
    there = Place(str(folder / f"new{n}"), sys.argv[2])
    transfer = Transfer(Place(str(folder / "disk.img")), there, folder / f"bookmarks{n}")
    copy(transfer, Unwatched())
    return compare(transfer, Unwatched()).root_hash

with ThreadPoolExecutor(10) as pool:
    hashes = set(pool.map(one, range(10)))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"hashes": len(hashes), "peak_kib": int(status["VmHWM"].split()[0])}))
"""


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_ten_at_once_stay_under_300_mib(format_: str, tmp_path: Path) -> None:
    write_at(tmp_path / "disk.img", random.Random(1).randbytes(24 * MIB), 0)
    ended = subprocess.run(
        [sys.executable, "-c", MANY, str(tmp_path), format_], capture_output=True, check=True, timeout=120
    )
    told = json.loads(ended.stdout)
    assert told["hashes"] == 1
    assert told["peak_kib"] < BOUND_MIB * 1024


def test_the_memory_of_a_stream_is_given_back(tmp_path: Path) -> None:
    """libnbd's binding keeps a reference to each buffer that it was given."""
    source, behind = tmp_path / "disk.img", tmp_path / "behind.img"
    write_at(source, random.Random(1).randbytes(8 * MIB), 0)
    write_at(behind, bytes(8 * MIB), 0)

    def resident_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    with nbd_on_socket(behind, tmp_path) as url:
        transfer = Transfer(source, Place(url), tmp_path / "bookmarks")
        copy(transfer, Unwatched())
        before = resident_kib()
        for _ in range(10):
            compare(transfer, Unwatched())
        assert resident_kib() - before < 16 * 1024  # ten times 2 chunks would keep 80 MiB
