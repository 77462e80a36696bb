"""Reflinks: sharing the blocks of a file, and proving that two files share them.

Follows ioctl_ficlonerange(2) and the kernel's Documentation/filesystems/fiemap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator
from typing import NamedTuple

_FICLONE = 0x40049409
_FIEMAP = 0xC020660B
_FLAG_SYNC = 0x1
_LAST, _UNWRITTEN, _SHARED = 0x1, 0x800, 0x2000
# unknown, delalloc, encoded, encrypted, not aligned, inline, tail: the physical address says nothing
_UNTELLING = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
_HEADER = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_BATCH = 512
_IMPOSSIBLE = {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY}


class Mapping(NamedTuple):
    """One extent of a file: its offset in the file and on the device, its length in bytes, and its FIEMAP flags."""

    logical: int
    physical: int
    length: int
    flags: int


def clone(source_fd: int, destination_fd: int) -> bool:
    """Make the destination share all blocks of the source. Return False if these files cannot share. Raises OSError."""
    try:
        fcntl.ioctl(destination_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            return False
        raise
    return True


def same_blocks(a_fd: int, b_fd: int) -> bool:
    """Do two files of one file system provably hold the same: each extent of both is the same shared one?

    Unwritten extents are left out: they read as zero like a hole, and xfs preallocates some at the source that
    a clone does not get. False where the file system reports no extents.
    """
    try:
        a, b = list(_joined(_mappings(a_fd))), list(_joined(_mappings(b_fd)))
    except OSError:
        return False  # no FIEMAP here: no proof, the caller reads
    return a == b and all(m.flags & _SHARED and not m.flags & _UNTELLING for m in a)


def _mappings(fd: int) -> Iterator[Mapping]:
    """Yield the written extents of a file, in order, after flushing its dirty pages."""
    start = 0
    while True:
        request = bytearray(_HEADER.size + _BATCH * _EXTENT.size)
        _HEADER.pack_into(request, 0, start, 2**64 - 1 - start, _FLAG_SYNC, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FIEMAP, request)
        found = _HEADER.unpack_from(request)[3]
        for n in range(found):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(request, _HEADER.size + n * _EXTENT.size)
            if not flags & _UNWRITTEN:
                yield Mapping(logical, physical, length, flags & ~_LAST)
            start = logical + length
            if flags & _LAST:
                return
        if found == 0:
            return


def _joined(mappings: Iterator[Mapping]) -> Iterator[Mapping]:
    """Join extents that are adjacent both in the file and on the device: two files may be cut up differently."""
    last: Mapping | None = None
    for m in mappings:
        if last and _continues(last, m):
            last = last._replace(length=last.length + m.length)
            continue
        if last:
            yield last
        last = m
    if last:
        yield last


def _continues(last: Mapping, m: Mapping) -> bool:
    ends = last.logical + last.length, last.physical + last.length, last.flags
    return ends == (m.logical, m.physical, m.flags)
