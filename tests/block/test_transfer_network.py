"""Copies over iSCSI and NFS, through real servers."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.nbd_servers import iscsi_target, nfs_server
from tests.support.places import image

from vmferry.transfer import CHUNK, AnyPlace, Place, Transfer, Unwatched, compare, copy, root_hash_of

pytestmark = pytest.mark.slow

DISK = random.Random(4).randbytes(CHUNK + 4096) + bytes(CHUNK) + random.Random(5).randbytes(300 * 4096)
JUNK = b"\xaa" * (3 * CHUNK)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    return image(tmp_path / "from", DISK)


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_over_iscsi_there_and_back(disk: Path, tmp_path: Path, format_: str) -> None:
    lun = tmp_path / "lun"
    lun.write_bytes(JUNK)
    with iscsi_target(lun, tmp_path) as url:
        there = Place(url, format_)
        transfer: Transfer[AnyPlace, AnyPlace] = Transfer(disk, there, tmp_path / "bookmarks")
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).recopied_chunks == 0
        assert copied.root_hash == root_hash_of(disk, Unwatched())
        copy(back := Transfer(there, Place(str(tmp_path / "back")), tmp_path / "bookmarks-back"), Unwatched())
        assert compare(back, Unwatched()).recopied_chunks == 0
    assert (tmp_path / "back").read_bytes()[: len(DISK)] == DISK
    if format_ == "raw":
        assert lun.read_bytes() == DISK + JUNK[len(DISK) :]


def test_a_flipped_bit_on_a_lun_is_found_and_mended(disk: Path, tmp_path: Path) -> None:
    lun = tmp_path / "lun"
    lun.write_bytes(JUNK)
    with iscsi_target(lun, tmp_path) as url:
        transfer = Transfer(disk, Place(url), tmp_path / "bookmarks")
        copy(transfer, Unwatched())
        for offset in (17, CHUNK + 8192):
            before = lun.read_bytes()[offset]
            with lun.open("r+b") as file:
                file.seek(offset)
                file.write(bytes([before ^ 1]))
        assert compare(transfer, Unwatched()).recopied_chunks == 2
    assert lun.read_bytes()[: len(DISK)] == DISK


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    folder = tmp_path_factory.mktemp("nfs")
    (folder / "export").mkdir()
    with nfs_server(folder / "export", folder) as inside:
        yield folder / "export", inside


def vmferry(inside: list[str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    state = {**os.environ, "VMFERRY_STATE": str(folder / "state")}
    command = [*inside, sys.executable, "-c", "from vmferry.cli.main import main; main()", "copy", "--json", *words]
    return subprocess.run(command, capture_output=True, text=True, env=state, timeout=120)


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_over_nfs_there_and_back(disk: Path, tmp_path: Path, export: tuple[Path, list[str]], format_: str) -> None:
    folder, inside = export
    url, hash_ = f"nfs://127.0.0.1{folder}/disk.{format_}", root_hash_of(disk, Unwatched())
    there = vmferry(inside, tmp_path, "-O", format_, str(disk), url)
    assert json.loads(there.stdout.splitlines()[-1])["root_hash"] == hash_, there.stderr
    back = vmferry(inside, tmp_path, "-f", format_, "-O", "raw", url, str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back").read_bytes() == DISK
    again = vmferry(inside, tmp_path, "-O", format_, str(disk), url)
    assert (again.returncode, "never overwritten" in again.stderr) == (3, True)
