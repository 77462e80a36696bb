"""Receipts that were damaged, are old, or name what was written since never pass for good."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vmferry.cli.receipt_file import read_receipt, seals_of
from vmferry.errors import BadReceipt, OldReceipt, VmferryError
from vmferry.model import Seal, checksum
from vmferry.transfer import CHUNK, Place, Unwatched
from vmferry.transfer.ranges import Range
from vmferry.transfer.standalone import DiskCopy
from vmferry.transfer.verification.seals import Stamp, Written, stamp, unpack_marks, written
from vmferry.transfer.verification.verify import VerifyOutcome, verify

BYTES = random.Random(5).randbytes(CHUNK) + bytes(CHUNK) + random.Random(6).randbytes(CHUNK + 4096)
SEAL = Seal("/x", "raw", "bytes", 9, "ab", "eJw=", "inode 7 9", "100", "200")
Telling = dict[str, object]


@pytest.fixture
def copied(tmp_path: Path) -> Telling:
    """The receipt of a copy, whose destination lies there as it was copied."""
    (tmp_path / "disk.img").write_bytes(BYTES)
    done = DiskCopy(Place(str(tmp_path / "disk.img")), Place(str(tmp_path / "new.img")), tmp_path / "memory").run(
        Unwatched(), Unwatched(), 2
    )
    assert done.seal is not None
    told: Telling = {"event": "end", "copy_seconds": 0.25, "seal": asdict(done.seal)}
    return {**told, "checksum": checksum(told)}


def the_seal(receipt: Telling) -> Seal:
    return seals_of(receipt, "receipt")[0]


def test_what_lies_there_unwritten_is_the_same(copied: Telling) -> None:
    verdict = verify(the_seal(copied), Unwatched())
    assert (verdict.outcome, verdict.compared_bytes, verdict.wrong) == (VerifyOutcome.SAME, 2 * CHUNK + 4096, ())


def test_rot_is_found_at_its_chunk(copied: Telling, tmp_path: Path) -> None:
    rot(tmp_path / "new.img", 2 * CHUNK + 70000)
    verdict = verify(the_seal(copied), Unwatched())
    assert verdict.outcome is VerifyOutcome.DIFFERS
    assert verdict.wrong == (Range(2 * CHUNK, 3 * CHUNK),)


def test_rot_in_a_chunk_of_zeros_is_found(copied: Telling, tmp_path: Path) -> None:
    rot(tmp_path / "new.img", CHUNK + 5)
    assert verify(the_seal(copied), Unwatched()).wrong == (Range(CHUNK, 2 * CHUNK),)


def test_what_was_written_since_is_not_judged(copied: Telling, tmp_path: Path) -> None:
    with (tmp_path / "new.img").open("r+b") as file:
        file.write(BYTES[:1])  # even the same byte
    os.utime(tmp_path / "new.img", ns=(0, 1 + int(the_seal(copied).marker)))
    assert verify(the_seal(copied), Unwatched()).outcome is VerifyOutcome.WRITTEN


@pytest.mark.parametrize("change", ["removed", "replaced", "longer"])
def test_another_file_is_not_judged(copied: Telling, tmp_path: Path, change: str) -> None:
    new = tmp_path / "new.img"
    if change == "longer":
        os.truncate(new, len(BYTES) + 1)
    else:
        new.rename(tmp_path / "old.img")
    if change == "replaced":
        new.write_bytes(BYTES)
    assert verify(the_seal(copied), Unwatched()).outcome is VerifyOutcome.WRITTEN


def test_a_fifo_in_its_place_is_refused_at_once(copied: Telling, tmp_path: Path) -> None:
    (tmp_path / "new.img").unlink()
    os.mkfifo(tmp_path / "new.img")
    with pytest.raises(BadReceipt, match="neither a file nor"):
        verify(the_seal(copied), Unwatched())


def rot(path: Path, offset: int) -> None:
    """Flip a bit, and let the file look as before: what a bad disk does."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("seal", "now", "known"),
    [
        (SEAL, Stamp("inode 7 9", "100", "200"), Written.NO),
        (SEAL, Stamp("inode 8 9", "100", "200"), Written.YES),
        (SEAL, Stamp("inode 7 9", "101", "200"), Written.YES),
        (SEAL, Stamp("inode 7 9", "100", "201"), Written.UNSURE),
        (replace(SEAL, ctime=""), Stamp("inode 7 9", "100", "201"), Written.NO),
        (replace(SEAL, ctime=""), Stamp("inode 7 9", "101", "201"), Written.YES),
        (replace(SEAL, marker="boot 1 50 0", ctime=""), Stamp("inode 7 9", "boot 1 50 0"), Written.NO),
        (replace(SEAL, marker="boot 1 50 0", ctime=""), Stamp("inode 7 9", "boot 1 58 0"), Written.YES),
        (replace(SEAL, marker="boot 1 50 0", ctime=""), Stamp("inode 7 9", "other 1 50 0"), Written.UNSURE),
        (replace(SEAL, identity="", marker="", ctime=""), Stamp(), Written.UNSURE),
    ],
)
def test_what_tells_that_something_was_written(seal: Seal, now: Stamp, known: Written) -> None:
    assert written(seal, now)[0] is known


def test_the_checksum_does_not_care_how_the_json_is_written(copied: Telling) -> None:
    rewritten = json.loads(json.dumps(copied, indent=4, sort_keys=True).replace("0.25", "2.5e-1"))
    assert seals_of(rewritten, "receipt") == seals_of(copied, "receipt")
    assert checksum({"a": 2.0, "from_": 1}) == checksum({"from": 1, "a": 2})


def test_a_receipt_of_an_earlier_version_says_so() -> None:
    with pytest.raises(OldReceipt, match="earlier version"):
        seals_of({"event": "end", "root_hash": "00"}, "receipt")


def test_a_job_of_which_one_disk_has_no_seal_is_not_passed_for_the_others(copied: Telling) -> None:
    told: Telling = {"job": "a", "disks": [{"seal": copied["seal"]}, {"seal": None}]}
    with pytest.raises(OldReceipt):
        seals_of({**told, "checksum": checksum(told)}, "receipt")


def passes(path: Path) -> bool:
    """Would `vmferry verify` call it good?"""
    try:
        return all(
            verify(seal, Unwatched()).outcome is VerifyOutcome.SAME for seal in seals_of(read_receipt(path), "it")
        )
    except VmferryError:
        return False


def damaged(text: bytes, dice: random.Random) -> bytes:
    """One of the ways in which a file goes bad."""
    at, length = dice.randrange(len(text)), dice.randrange(1, 40)
    match dice.randrange(6):
        case 0:
            return text[:at] + bytes([text[at] ^ (1 << dice.randrange(8))]) + text[at + 1 :]
        case 1:
            return text[:at]
        case 2:
            return text[:at] + text[at + length :]
        case 3:
            return text[:at] + dice.randbytes(length) + text[at:]
        case 4:
            return text[:at] + str(dice.randrange(10)).encode() + text[at + 1 :]
        case _:
            other = dice.randrange(len(text))
            return text[:at] + text[other : other + length] + text[at + length :]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(8))
def test_a_receipt_damaged_at_random_never_passes_for_good(copied: Telling, tmp_path: Path, seed: int) -> None:
    whole = json.dumps(copied).encode()
    path, dice = tmp_path / "receipt.json", random.Random(seed)
    path.write_bytes(whole)
    assert passes(path)
    for _ in range(100):
        bad = damaged(whole, dice)
        path.write_bytes(bad)
        assert not passes(path) or read_receipt(path) == copied, bad


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(4))
def test_a_receipt_that_lies_with_a_true_checksum_never_passes_for_good(copied: Telling, seed: int) -> None:
    """Somebody who writes receipts himself can name other bytes, but not call them what they are not."""
    dice = random.Random(seed)
    for _ in range(50):
        seal = dict(copied["seal"])  # type: ignore[call-overload]
        name = dice.choice(["size", "root_hash", "identity", "marker", "hashed", "format", "at", "marks"])
        seal[name] = dice.choice([-5, 0, 2**62, "", "x" * 50, str(seal[name])[::-1], [], None, 1 << 70])
        lie: Telling = {**copied, "seal": seal}
        if lie == copied:
            continue
        lie["checksum"] = checksum(lie)
        try:
            verdict = verify(the_seal(lie), Unwatched())
        except VmferryError:
            continue
        assert verdict.outcome is not VerifyOutcome.SAME or name in ("marks", "marker", "format"), lie


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000, '{"a":' * 100000, "9" * 10000, '{"receipt": 3}'])
def test_what_is_no_receipt_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "receipt").write_text(text)
    with pytest.raises((BadReceipt, OldReceipt)):
        seals_of(read_receipt(tmp_path / "receipt"), "receipt")


def test_marks_that_unpack_to_more_than_fits_are_refused() -> None:
    with pytest.raises(BadReceipt, match="marks"):
        unpack_marks(replace(SEAL, size=CHUNK, marks="eJztwTEBAAAAwqD1T20MH6AAAAAAAAAAAAAAAAAAAAAA"))


def test_a_place_that_is_gone_has_no_stamp(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        stamp(Place(str(tmp_path / "nothing")))
