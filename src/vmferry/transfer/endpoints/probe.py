"""What tells a file or device from all others, also when it has changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from blake3 import blake3

from vmferry.qemu.places import Place, Scheme

_NAMES = ("dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "loop/backing_file")
_SYS = Path("/sys/dev/block")


def digest(*facts: object) -> bytes:
    """Return a BLAKE3 digest of 16 bytes of these facts."""
    return blake3("\0".join(map(str, facts)).encode()).digest(16)


def number(*facts: object) -> int:
    """Return a digest of these facts as a number of 64 bits, the size of an inode number."""
    return int.from_bytes(digest(*facts)[:8], "little")


def device_facts(status: os.stat_result) -> tuple[str, ...]:
    """Return what identifies a block device, also after a reboot; without such a name, its major and minor number."""
    mine = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    folder = (_SYS / mine).resolve()
    part = _text(folder / "partition")
    if part:
        folder = folder.parent
    known = next((f"{name}={found}" for name in _NAMES if (found := _text(folder / name))), mine)
    return ("device", known, part)


def file_facts(name: str) -> tuple[str, ...]:
    """Return what tells a file of an image from a changed one; of a URL only its text is known."""
    path = Path(name)
    try:
        status = path.stat()
    except OSError:
        return ("url", name)
    if stat.S_ISBLK(status.st_mode):
        return device_facts(status)
    return ("file", str(status.st_ino), str(status.st_size), str(status.st_mtime_ns))


def claim_of(place: Place) -> int:
    """Return the number that identifies a destination that existed before. Raises OSError."""
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
