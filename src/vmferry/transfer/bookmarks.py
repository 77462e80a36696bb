"""The bookmarks of a transfer: which chunks were written to the destination, with their digests.

An append-only file: a header of 64 bytes, then records of 48 bytes, each with its own CRC-32. A chunk is
noted as soon as it was written, so a kill costs no more than what was in flight; it becomes durable, and its
record after it, once a second. So after a power failure a record may tell of a chunk that is not there: none
is believed before the chunk was read back. All other records are written after what they tell of is durable.
Reading stops at the first record that is torn or damaged: what stood behind it is copied again.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

from vmferry.durable import sync_folder
from vmferry.errors import BookmarksDamaged
from vmferry.transfer.ranges import CHUNK

_MAGIC = b"vmferry\x00"
_VERSION = 2
_READ_TOO = 1  # had no origin, which is that of a file copied byte for byte
_HEADER = struct.Struct("<8sIIQQq16s4xI")  # magic, version, chunk size, size, inode, mtime_ns, origin, crc32
_RECORD = struct.Struct("<QI32sI")  # number, kind, digest, crc32
_CRC = struct.Struct("<I")


class RecordKind(IntEnum):
    """What a record of the bookmark file says about the chunk or value that its number names."""

    CLAIM = 1  # the inode of the destination, which was created by us; or what tells it from others
    DATA = 2  # this chunk was written and has this digest
    ZERO = 3  # this chunk is all zero
    WHOLE = 4  # all chunks are there, durably; the number is 1 if by reflink, else 0
    MADE = 5  # the destination is an image, empty and durable, ready for chunks
    PROVED = 6  # this chunk of a source that grows was read back, and will not be written again


class SourceIdentity(NamedTuple):
    """What tells a frozen source from a changed one.

    The change time (ctime) is left out, for libvirt changes owners; the device number too, for btrfs and NFS number it
    anew at each mount.
    """

    size: int
    inode: int
    mtime_ns: int
    origin: bytes = bytes(16)  # digest of what an image, a device or a URL is; zeros for a file's own bytes


class Record(NamedTuple):
    kind: RecordKind
    number: int
    digest: bytes = bytes(32)


@dataclass(slots=True)
class Bookmarks:
    """The content of a bookmark file: the source's identity, the claim, and the chunks that were written and proved."""

    source: SourceIdentity | None = None  # None: the header is damaged
    claim: int | None = None  # inode of the destination; None: it was about to be created
    chunks: dict[int, bytes | None] = field(default_factory=dict)  # None: all zero
    proved: set[int] = field(default_factory=set)
    made: bool = False
    whole: bool = False
    reflink: bool = False
    valid_bytes: int = 0

    def take(self, record: Record) -> None:
        """Apply one more record of the file; later records override earlier ones."""
        if record.kind is RecordKind.CLAIM:
            self.claim = record.number
        elif record.kind is RecordKind.MADE:
            self.made = True
        elif record.kind is RecordKind.WHOLE:
            self.whole, self.reflink = True, bool(record.number)
        elif record.kind is RecordKind.PROVED:
            self.proved.add(record.number)
        else:
            self.proved.discard(record.number)
            self.chunks[record.number] = record.digest if record.kind is RecordKind.DATA else None


def read(path: Path) -> Bookmarks | None:
    """Read a bookmark file up to its first damaged record. Return None if there is no such file. Raises OSError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    found = Bookmarks(source=_header(content))
    for start in range(_HEADER.size, len(content) - _RECORD.size + 1, _RECORD.size):
        record = _record(content[start : start + _RECORD.size])
        if record is None:
            break
        found.take(record)
        found.valid_bytes = start + _RECORD.size
    found.valid_bytes = max(found.valid_bytes, _HEADER.size)
    return found


def proved(path: Path, found: Bookmarks) -> SourceIdentity:
    """Return the source's identity in these bookmarks. Raises BookmarksDamaged if the header cannot be trusted."""
    if found.source is None:
        raise BookmarksDamaged(path=path, reason="its header is not what was written")
    return found.source


class Journal:
    """The bookmark file, open for appending records. Every method raises OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def begin(cls, path: Path, source: SourceIdentity) -> Self:
        """Create a new bookmark file, which is durable with its name when this returns."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            body = _HEADER.pack(_MAGIC, _VERSION, CHUNK, *source, 0)[: -_CRC.size]
            _write(fd, body + _CRC.pack(zlib.crc32(body)))
            os.fsync(fd)
            sync_folder(path.parent)
        except OSError:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def resume(cls, path: Path, found: Bookmarks) -> Self:
        """Open an existing bookmark file and cut it off behind its last valid record, to append there."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(fd, found.valid_bytes)
        return cls(fd)

    def append(self, record: Record) -> None:
        """Add a record and make it durable, with all records before it."""
        self.note(record)
        self.sync()

    def note(self, record: Record) -> None:
        """Add a record that survives a crash of this process, but not a power failure."""
        _write(self._fd, _packed(record))

    def sync(self) -> None:
        """Make all records durable."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _write(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _packed(record: Record) -> bytes:
    body = _RECORD.pack(record.number, record.kind, record.digest, 0)[: -_CRC.size]
    return body + _CRC.pack(zlib.crc32(body))


def _intact(content: bytes) -> bool:
    return content[-_CRC.size :] == _CRC.pack(zlib.crc32(content[: -_CRC.size]))


def _header(content: bytes) -> SourceIdentity | None:
    header = content[: _HEADER.size]
    if len(header) < _HEADER.size or not _intact(header):
        return None
    magic, version, chunk, size, inode, mtime_ns, origin, _ = _HEADER.unpack(header)
    if (magic, chunk) != (_MAGIC, CHUNK) or version not in (_VERSION, _READ_TOO):
        return None
    return SourceIdentity(size, inode, mtime_ns, origin)


def _record(content: bytes) -> Record | None:
    if not _intact(content):
        return None
    number, kind, digest, _ = _RECORD.unpack(content)
    return Record(RecordKind(kind), number, digest) if kind in RecordKind.__members__.values() else None
