"""A block device as a medium."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.errors import DestinationInUse
from vmferry.transfer.endpoints.file import reading, writing
from vmferry.transfer.endpoints.interface import Can
from vmferry.transfer.endpoints.raw_file import ALIGN, RawFile
from vmferry.transfer.ranges import CHUNK, Range, pieces

_ZEROS = bytes(CHUNK)
_NO_ZEROING = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Device:
    """An open block device as a medium. It has no map of its data, so all of it may be data."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self.size = os.lseek(raw.fd, 0, os.SEEK_END)

    @property
    def fd(self) -> int:
        return self._raw.fd

    @property
    def can(self) -> Can:
        able = Can.ZERO | Can.SHARE | Can.FLUSH
        return able | Can.DIRECT if self._raw.direct else able

    def extents(self, within: Range) -> Iterator[Range]:
        if within.length:
            yield within

    def read(self, offset: int, into: memoryview) -> None:
        self._raw.read(offset, into)

    def write(self, offset: int, content: memoryview) -> None:
        self._raw.write(offset, content)

    def zero(self, where: Range) -> None:
        """Make the range read as zero: by discarding if the device promises zeros then, else by writing zeros."""
        body = Range(where.start, where.end - where.length % ALIGN)
        if body.length:
            self._zero_pages(body)
        if body.end < where.end:
            self._raw.write(body.end, memoryview(_ZEROS)[: where.end - body.end])

    def flush(self) -> None:
        self._raw.sync()

    def _zero_pages(self, where: Range) -> None:
        # On a block device PUNCH_HOLE is an unmap that promises zeros, ZERO_RANGE falls back to writing them
        # (blkdev_fallocate in the kernel's block/fops.c).
        for act in (self._raw.punch, self._raw.zero):
            try:
                act(where)
            except OSError as error:
                if error.errno not in _NO_ZEROING:
                    raise
            else:
                return
        for piece in pieces(where, lambda: CHUNK):
            self._raw.write(piece.start, memoryview(_ZEROS)[: piece.length])


@contextmanager
def device_to_read(path: Path) -> Iterator[Device]:
    """Open a block device for reading. A context manager. Raises SourceUnreadable."""
    with reading(path):
        raw = RawFile(path, os.O_RDONLY)
    try:
        with reading(path):
            device = Device(raw)
        yield device
    finally:
        raw.close()


@contextmanager
def device_to_write(path: Path) -> Iterator[Device]:
    """Open a block device for writing, exclusively, so that no mount, LVM or such tool has it or takes it meanwhile.

    A context manager. Raises DestinationInUse, DestinationUnwritable.
    """
    try:
        with writing(path):
            raw = RawFile(path, os.O_RDWR | os.O_EXCL)
    except Exception as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
            raise DestinationInUse(path=path) from error
        raise
    try:
        with writing(path):
            device = Device(raw)
        yield device
    finally:
        raw.close()
