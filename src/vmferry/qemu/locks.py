"""QEMU's image locks, so that no VM writes to what is read here, or has open what is written here.

Follows block/file-posix.c: byte 100 + n is locked by whoever uses permission n, byte 200 + n by whoever does
not share it. The locks belong to the open file and go with it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_WRITE, _RESIZE = 1, 3
_USED, _UNSHARED = 100, 200
_F_OFD_SETLK = 37
_F_OFD_GETLK = 36
_LOCK = struct.Struct("hhqqi4x")
_WITHOUT_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP}


def guard_reading(fd: int) -> bool:
    """Keep writers away from an open image; False if one has it already. Raises OSError.

    A file system without such locks is left unguarded, and the answer is True.
    """
    return _guarded(fd, take=[_UNSHARED + _WRITE, _UNSHARED + _RESIZE], free=[_USED + _WRITE])


def guard_writing(fd: int) -> bool:
    """Keep all other users away from an image open for writing; False if there is one. Raises OSError."""
    take = [_USED + _WRITE, _UNSHARED + _WRITE, _UNSHARED + _RESIZE]
    return _guarded(fd, take=take, free=[_USED + _WRITE, _UNSHARED + _WRITE])


def _guarded(fd: int, *, take: list[int], free: list[int]) -> bool:
    """Take shared locks first and look then, as QEMU does: of two that come at once at least one gives way."""
    try:
        for byte in take:
            fcntl.fcntl(fd, _F_OFD_SETLK, _lock(fcntl.F_RDLCK, byte))
        return not any(_held_by_another(fd, byte) for byte in free)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return True


def _held_by_another(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _lock(fcntl.F_WRLCK, byte))
    return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _lock(kind: int, byte: int) -> bytes:
    return _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
