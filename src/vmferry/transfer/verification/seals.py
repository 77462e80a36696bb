"""Seals: taken of a destination when it has been proved, checked against it later."""

from __future__ import annotations

import os
import stat
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from vmferry.errors import BadReceipt
from vmferry.model.seals import Seal
from vmferry.qemu.places import Place, Scheme
from vmferry.transfer.endpoints.probe import device_facts
from vmferry.transfer.ranges import CHUNK

MARK = 4
MOST_CHUNKS = 1 << 24
"""64 TiB. What claims more is damaged."""
_NONE = bytes(MARK)
_SYS = Path("/sys/dev/block")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_WRITTEN, _DISCARDED = 6, 13  # sectors; Documentation/block/stat.rst


class Written(Enum):
    """Whether a place has been written since its seal was taken."""

    NO = "no"
    UNSURE = "unsure"
    YES = "yes"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is known of a place without reading its content: identity, modification marker, change time."""

    identity: str = ""
    marker: str = ""
    ctime: str = ""


def stamp(place: Place) -> Stamp:
    """Return the stamp of a place now, empty for a URL. Raises OSError, BadReceipt if it can hold no disk."""
    if place.scheme is not Scheme.PATH:
        return Stamp()
    status = place.path.stat()
    if stat.S_ISBLK(status.st_mode):
        return Stamp(f"{' '.join(device_facts(status))} {_device_bytes(place.path)}", _device_marker(status))
    if not stat.S_ISREG(status.st_mode):
        raise BadReceipt(receipt=place.at, reason="it names something that is neither a file nor a block device")
    # Not st_dev: btrfs and NFS number it anew at each mount.
    return Stamp(f"inode {status.st_ino} {status.st_size}", str(status.st_mtime_ns), str(status.st_ctime_ns))


@dataclass(frozen=True, slots=True)
class Proof:
    """What has been proved of a place: size in bytes, root hash, digests of its chunks, and what was hashed."""

    size: int
    root_hash: str
    digests: Mapping[int, bytes | None]
    hashed: str


def sealed(place: Place, proof: Proof) -> Seal | None:
    """Return a seal of the place as it is now; None if it is too large to seal or does not exist any more."""
    try:
        now = stamp(place)
    except OSError:
        return None
    if proof.size > MOST_CHUNKS * CHUNK:
        return None
    marks = pack_marks(proof.size, proof.digests)
    return Seal(
        at=place.shown,
        format=place.format,
        hashed=proof.hashed,
        size=proof.size,
        root_hash=proof.root_hash,
        marks=marks,
        identity=now.identity,
        marker=now.marker,
        ctime=now.ctime,
    )


def moved(seal: Seal | None, to: Place) -> Seal | None:
    """Return the seal for a file renamed to `to`; a write in between is still detected. None without a seal."""
    if seal is None:
        return None
    try:
        return replace(seal, at=to.shown, ctime=stamp(to).ctime)
    except OSError:
        return replace(seal, at=to.shown, ctime="")


def written(seal: Seal, now: Stamp) -> tuple[Written, str]:
    """Return whether the place has been written since the seal was taken, and why. Pure."""
    if now.identity != seal.identity:
        return Written.YES, "it is another file or device, or has another size"
    if not seal.marker or not now.marker:
        return Written.UNSURE, "nobody can tell when this was written last"
    if now.marker != seal.marker:
        if " " in seal.marker and _boot(seal.marker) != _boot(now.marker):
            return Written.UNSURE, "the machine was started since, and a device forgets then what was written"
        return Written.YES, "it was written since"
    if seal.ctime and now.ctime != seal.ctime:
        return Written.UNSURE, "its owner, mode or name were changed since"
    return Written.NO, ""


def pack_marks(size: int, digests: Mapping[int, bytes | None]) -> str:
    """Pack the marks of all chunks, in order: compressed, in base64."""
    marks = b"".join((digests.get(index) or _NONE)[:MARK] for index in range(chunks_of(size)))
    return b64encode(zlib.compress(marks)).decode()


def unpack_marks(seal: Seal) -> list[bytes]:
    """Return the seal's marks, one for each chunk. Raises BadReceipt if they are damaged or their number is wrong."""
    wanted = chunks_of(seal.size)
    if seal.size < 0 or wanted > MOST_CHUNKS:
        raise BadReceipt(receipt=seal.at, reason="its size is impossible")
    try:
        marks = zlib.decompressobj().decompress(b64decode(seal.marks, validate=True), wanted * MARK + 1)
    except (ValueError, zlib.error) as error:
        raise BadReceipt(receipt=seal.at, reason=f"its marks are no marks ({error})") from None
    if len(marks) != wanted * MARK:
        raise BadReceipt(receipt=seal.at, reason="its marks are not as many as its chunks")
    return [marks[start : start + MARK] for start in range(0, len(marks), MARK)]


def mark_of(digest: bytes | None) -> bytes:
    return (digest or _NONE)[:MARK]


def chunks_of(size: int) -> int:
    return -(-size // CHUNK)


def _device_bytes(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _device_marker(status: os.stat_result) -> str:
    """Return boot id, medium and write counts, which tell of writes to a device; "" if the kernel has none."""
    folder = _SYS / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        counts = (folder / "stat").read_text().split()
        discarded = counts[_DISCARDED] if len(counts) > _DISCARDED else "0"
        return f"{_BOOT.read_text().strip()} {_sequence(folder)} {counts[_WRITTEN]} {discarded}"
    except (OSError, IndexError):
        return ""


def _sequence(folder: Path) -> str:
    """Return the kernel's number of the medium behind a device name; "0" before kernel 5.15, and for partitions."""
    try:
        return (folder / "diskseq").read_text().strip()
    except OSError:
        return "0"


def _boot(marker: str) -> str:
    return marker.partition(" ")[0]
