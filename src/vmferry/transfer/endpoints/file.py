"""Local files as endpoints."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vmferry.errors import (
    DestinationFull,
    DestinationUnwritable,
    SourceChanged,
    SourceUnreadable,
    VmferryError,
)
from vmferry.errors.system import said
from vmferry.transfer.bookmarks import SourceIdentity
from vmferry.transfer.endpoints.interface import Can
from vmferry.transfer.endpoints.raw_file import ALIGN, EndedEarly, RawFile
from vmferry.transfer.endpoints.reflink import clone
from vmferry.transfer.ranges import CHUNK, Range, pieces

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_PUNCH = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_ZEROS = bytes(CHUNK)


def unwritable(path: Path | str, error: OSError) -> VmferryError:
    """Return the DestinationFull or DestinationUnwritable that stands for an OSError while writing to `path`."""
    if error.errno in _FULL:
        return DestinationFull(path=path)
    return DestinationUnwritable(path=path, reason=error.strerror or str(error))


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an OSError into DestinationFull or DestinationUnwritable. A context manager."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def reading(path: Path | str, offset: int = 0) -> Iterator[None]:
    """Turn an OSError into SourceUnreadable, and a file that became shorter into SourceChanged. A context manager."""
    try:
        yield
    except EndedEarly as error:
        raise SourceChanged(path=path) from error
    except OSError as error:
        raise SourceUnreadable(path=path, offset=offset, reason=error.strerror or str(error)) from error


def identity(path: Path) -> SourceIdentity:
    """Return size, inode and modification time of the file at `path`. Raises SourceUnreadable."""
    with reading(path):
        found = path.stat()
    return SourceIdentity(found.st_size, found.st_ino, found.st_mtime_ns)


class _Closing:
    """A context manager that closes a raw file; an error of closing never hides an earlier one."""

    raw: RawFile
    path: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.raw.close()
        except OSError as failed:
            if error is None:
                raise self.close_error(failed) from failed
            error.add_note(f"closing {self.path} failed as well: {failed}")

    def close_error(self, failed: OSError) -> VmferryError:
        return SourceUnreadable(path=self.path, offset=0, reason=said(failed))


class SourceFile(_Closing):
    """A local file that does not change while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = identity(path)
        with reading(path):
            self.raw = RawFile(path, os.O_RDONLY)

    @property
    def can(self) -> Can:
        return _can(self.raw)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self.identity.size

    def extents(self, within: Range) -> Iterator[Range]:
        with reading(self.path, within.start):
            yield from self.raw.extents(within, self.size)

    def read(self, offset: int, into: memoryview) -> None:
        with reading(self.path, offset):
            self.raw.read(offset, into)

    def confirm(self) -> None:
        """Raise SourceChanged unless the file at this path is still the one that was opened."""
        if identity(self.path) != self.identity:
            raise SourceChanged(path=self.path)

    def attributes(self) -> os.stat_result:
        with reading(self.path):
            return os.fstat(self.raw.fd)


class DestinationFile(_Closing):
    """A local file that this transfer made and owns."""

    def __init__(self, path: Path, raw: RawFile) -> None:
        self.path = path
        self.raw = raw
        with writing(path):
            self._size = os.fstat(raw.fd).st_size

    @property
    def can(self) -> Can:
        return _can(self.raw)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def size(self) -> int:
        return self._size

    def resize(self, size: int) -> None:
        """Give the file the size of the source; what is new is a hole."""
        with writing(self.path):
            os.ftruncate(self.raw.fd, size)
        self._size = size

    def extents(self, within: Range) -> Iterator[Range]:
        return self.raw.extents(within, self._size)

    def share(self, source: SourceFile) -> bool:
        """Share all blocks of the source by reflink. Return False if the file system cannot."""
        with writing(self.path):
            return clone(source.raw.fd, self.raw.fd)

    def write(self, offset: int, content: memoryview) -> None:
        with writing(self.path):
            self.raw.write(offset, content)

    def zero(self, where: Range) -> None:
        with writing(self.path):
            try:
                self.raw.punch(where)
            except OSError as error:
                if error.errno not in _NO_PUNCH:
                    raise
                self._write_zeros(where)

    def flush(self) -> None:
        with writing(self.path):
            self.raw.sync()

    def read_back(self, offset: int, into: memoryview) -> None:
        self.raw.read(offset, into)

    def take_attributes(self, of: os.stat_result | None) -> None:
        """Take over mode and, where permitted, owner of the source, if there are any; then make everything durable."""
        with writing(self.path):
            if of is not None:
                # Not root: the file stays ours, and libvirt gives it to QEMU when the VM starts.
                with suppress(PermissionError):
                    os.fchown(self.raw.fd, of.st_uid, of.st_gid)
                os.fchmod(self.raw.fd, stat.S_IMODE(of.st_mode))
            self._hold_first_block()
            os.fsync(self.raw.fd)

    def _hold_first_block(self) -> None:
        """Write out the first block of a file whose size is no multiple of 4096, even if it holds zeros.

        QEMU finds the size of the sectors by reading that block, takes them for 4096 bytes where it is a hole, and then
        refuses to open a disk with O_DIRECT whose size is no multiple of 4096.
        """
        if self._size <= ALIGN or self._size % ALIGN == 0:
            return
        content = memoryview(bytearray(ALIGN))
        self.raw.read(0, content)
        if not any(content):
            self.raw.write(0, content)

    def close_error(self, failed: OSError) -> VmferryError:
        return unwritable(self.path, failed)

    def _write_zeros(self, where: Range) -> None:
        """Overwrite with zeros the parts of a range that hold data: for file systems without holes (NFS before 4.2)."""
        for extent in list(self.extents(where)):
            for piece in pieces(extent, lambda: CHUNK):
                self.raw.write(piece.start, memoryview(_ZEROS)[: piece.length])


def _can(raw: RawFile) -> Can:
    able = Can.EXTENTS | Can.ZERO | Can.SHARE | Can.REFLINK | Can.FLUSH
    return able | Can.DIRECT if raw.direct else able
