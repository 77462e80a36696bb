"""What a place is in this world, and what tells it from all others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from blake3 import blake3

from vmferry.qemu.places import Place, Scheme, Where, place_of
from vmferry.transfer.endpoints.file import reading
from vmferry.transfer.endpoints.route import End, PlaceKind

_KINDS = {
    Scheme.NBD: PlaceKind.NBD,
    Scheme.ISCSI: PlaceKind.ISCSI,
    Scheme.NFS: PlaceKind.NFS,
    Scheme.JSON: PlaceKind.JSON,
}
_NAMES = ("dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "loop/backing_file")
_SYS = Path("/sys/dev/block")


def end_of(where: Where) -> End:
    """A path that does not exist yet is that of a file. Raises SourceUnreadable if it cannot be told."""
    place = place_of(where)
    if place.scheme is not Scheme.PATH:
        return End(_KINDS[place.scheme], place.format)
    with reading(place.at):
        try:
            device = stat.S_ISBLK(place.path.stat().st_mode)
        except FileNotFoundError:
            device = False
    return End(PlaceKind.DEVICE if device else PlaceKind.FILE, place.format)


def digest(*facts: object) -> bytes:
    """16 bytes that stand for these facts."""
    return blake3("\0".join(map(str, facts)).encode()).digest(16)


def number(*facts: object) -> int:
    """The same in 64 bits, as large as an inode."""
    return int.from_bytes(digest(*facts)[:8], "little")


def device_facts(status: os.stat_result) -> tuple[str, ...]:
    """What tells a block device from others, also after a reboot; a device without such a name has its number."""
    mine = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    folder = (_SYS / mine).resolve()
    part = _text(folder / "partition")
    if part:
        folder = folder.parent
    known = next((f"{name}={found}" for name in _NAMES if (found := _text(folder / name))), mine)
    return ("device", known, part)


def file_facts(name: str) -> tuple[str, ...]:
    """What tells one of the files of an image from a changed one; of a URL there is only its text."""
    path = Path(name)
    try:
        status = path.stat()
    except OSError:
        return ("url", name)
    if stat.S_ISBLK(status.st_mode):
        return device_facts(status)
    return ("file", str(status.st_ino), str(status.st_size), str(status.st_mtime_ns))


def claim_of(place: Place) -> int:
    """What a destination that we did not make is remembered by. Raises OSError."""
    if place.scheme is not Scheme.PATH:
        return number("url", place.shown, place.format)
    fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return number(*device_facts(os.fstat(fd)), os.lseek(fd, 0, os.SEEK_END), place.format)
    finally:
        os.close(fd)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
