"""vmferry verify, as a person types it, on every kind of storage that a receipt can name."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from tests.support.copy_command import vmferry
from tests.support.places import Made, Maker, device, image, nbd_tcp, nbd_unix

from vmferry.transfer import CHUNK

pytestmark = pytest.mark.slow

DISK = random.Random(9).randbytes(CHUNK) + bytes(2 * CHUNK) + random.Random(8).randbytes(CHUNK)
WRITTEN = 6


def receipt(folder: Path, *words: str | Path) -> Path:
    """Copy the disk there, and keep what the command prints."""
    (folder / "from").mkdir()
    image(folder / "from", DISK).rename(folder / "disk.img")
    ended = vmferry(folder, "copy", "--json", *words)
    assert ended.returncode == 0, ended.stderr
    (folder / "receipt.json").write_text(ended.stdout)
    return folder / "receipt.json"


def verified(folder: Path, code: int) -> dict[str, object]:
    ended = vmferry(folder, "verify", "receipt.json", "--json")
    assert ended.returncode == code, ended.stdout + ended.stderr
    told: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    return told


def flip(path: Path, offset: int) -> None:
    """Rot: the bit changes, the times do not."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))
        os.fsync(file.fileno())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_a_file_is_the_same_until_it_rots(tmp_path: Path, format_: str) -> None:
    receipt(tmp_path, "--streams", "1", "-O", format_, "disk.img", "new")  # one: so the last chunk lies last
    assert verified(tmp_path, 0)["outcome"] == "same"
    flip(tmp_path / "new", (tmp_path / "new").stat().st_size - 5)
    told = verified(tmp_path, 1)
    assert (told["outcome"], told["wrong"]) == (
        "differs",
        [{"chunk": 3, "offset": 3 * CHUNK, "length": CHUNK}],
    )
    ended = vmferry(tmp_path, "verify", "receipt.json")
    assert f"chunk 3, bytes {3 * CHUNK} to {4 * CHUNK} differs" in ended.stdout


def test_a_disk_that_a_vm_has_open_is_not_judged(tmp_path: Path) -> None:
    """It has not written yet, but it may at any moment."""
    receipt(tmp_path, "-O", "qcow2", "disk.img", "new.qcow2")
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(tmp_path / "new.qcow2")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdin
        assert user.stdout
        user.stdin.write(b"read 0 512\n")
        user.stdin.flush()
        user.stdout.readline()  # it has opened the image
        told = verified(tmp_path, WRITTEN)
        user.communicate(b"quit\n", timeout=20)
    assert "open for writing" in str(told["why"])


def test_a_disk_that_a_vm_has_written_is_not_judged(tmp_path: Path) -> None:
    receipt(tmp_path, "-O", "qcow2", "disk.img", "new.qcow2")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 4096", tmp_path / "new.qcow2"], check=True)
    assert "written since" in str(verified(tmp_path, WRITTEN)["why"])


@pytest.mark.parametrize("make", [device, nbd_unix, nbd_tcp])
def test_a_device_and_an_export_can_be_verified(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "there").mkdir()
    with make(tmp_path / "there", bytes(len(DISK))) as there:
        receipt(tmp_path, "disk.img", there.place.at)
        assert verified(tmp_path, 0)["outcome"] == "same"
        damage(there, 3 * CHUNK)
        told = verified(tmp_path, 1)
        assert told["wrong"] == [{"chunk": 3, "offset": 3 * CHUNK, "length": CHUNK}]


def test_a_device_that_was_written_is_not_judged(tmp_path: Path) -> None:
    """Its kernel counts the sectors written, which is all that tells."""
    (tmp_path / "there").mkdir()
    with device(tmp_path / "there", bytes(len(DISK))) as there:
        receipt(tmp_path, "disk.img", there.place.at)
        with there.place.path.open("r+b") as file:
            file.write(DISK[:4096])  # the same bytes even
            os.fsync(file.fileno())
        assert "written since" in str(verified(tmp_path, WRITTEN)["why"])


def damage(there: Made, offset: int) -> None:
    """Below what the receipt names: no write passes there."""
    with there.behind.open("r+b") as file:
        file.seek(offset)
        file.write(b"rot")
        os.fsync(file.fileno())


def test_words_that_name_no_receipt_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"event": "end", "root_hash": "00"}\n')
    for name, says in (("old.json", "earlier version"), ("./nothing.json", "not a receipt")):
        ended = vmferry(tmp_path, "verify", name)
        assert (ended.returncode, says in ended.stderr) == (2, True), ended.stderr
