"""One open file, read and written past the page cache where its file system supports that."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vmferry.transfer.ranges import Range, align

ALIGN = 4096  # what O_DIRECT needs at most on the disks and file systems of the field
_PUNCH_HOLE_KEEP_SIZE = 0x03
_ZERO_RANGE_KEEP_SIZE = 0x11
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class EndedEarly(OSError):
    """The file is shorter than expected."""

    def __init__(self, offset: int) -> None:
        super().__init__(errno.EIO, f"the file ends at byte {offset}")


class RawFile:
    """A file descriptor with O_DIRECT, and one without for what O_DIRECT cannot do: the unaligned tail.

    Offsets and buffers are aligned to 4096, lengths too except at the end of the file. Where the file system refuses
    O_DIRECT, all goes through the page cache, from which it is dropped. Every method raises OSError.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.direct = True
        flags |= os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # O_CREAT|O_EXCL with O_DIRECT leaves the new file behind when it fails with EINVAL.
            self.fd = os.open(path, flags & ~os.O_EXCL if flags & os.O_CREAT else flags, 0o600)
            self.direct = False
        try:
            access = flags & os.O_ACCMODE | os.O_CLOEXEC
            self._plain = os.open(f"/proc/self/fd/{self.fd}", access)
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close both descriptors, the second one even if the first one fails."""
        try:
            os.close(self._plain)
        finally:
            os.close(self.fd)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill all of into. Raises EndedEarly when the file is too short."""
        body = len(into) - len(into) % ALIGN
        self._aligned(_read_all, offset, into[:body])
        if body < len(into):
            self._read_plain(offset + body, into[body:])

    def write(self, offset: int, content: memoryview) -> None:
        """Write all of content."""
        body = len(content) - len(content) % ALIGN
        self._aligned(_write_all, offset, content[:body])
        if body < len(content):
            _write_all(self._plain, offset + body, content[body:])

    def extents(self, within: Range, size: int) -> Iterator[Range]:
        """Yield the data ranges, widened to 4096 bytes; unwritten preallocated extents count as holes."""
        found = _data(self.fd, within)
        return align(found, ALIGN, min(within.end, size))

    def punch(self, where: Range) -> None:
        """Make the range a hole. Raises OSError with EOPNOTSUPP if the file system has no holes."""
        self._allocate(_PUNCH_HOLE_KEEP_SIZE, where)

    def zero(self, where: Range) -> None:
        """Make the range read as zero, allocated or not. Raises OSError with EOPNOTSUPP if only writing can do it."""
        self._allocate(_ZERO_RANGE_KEEP_SIZE, where)

    def sync(self) -> None:
        """Make what was written durable; if it went through the page cache, drop it from there."""
        os.fdatasync(self.fd)
        if not self.direct:
            self.forget_cache()

    def forget_cache(self) -> None:
        """Drop clean pages, so that the next read comes from the storage."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _allocate(self, mode: int, where: Range) -> None:
        if _libc.fallocate(self.fd, mode, where.start, where.length) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _aligned(self, act: Callable[[int, int, memoryview], None], offset: int, content: memoryview) -> None:
        """Call `act` with O_DIRECT; at the first EINVAL go over to the page cache for good."""
        if not content:
            return
        if self.direct:
            try:
                act(self.fd, offset, content)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._stop_direct()
        if act is _read_all:
            self._read_plain(offset, content)
        else:
            act(self._plain, offset, content)

    def _stop_direct(self) -> None:
        self.direct = False
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)

    def _read_plain(self, offset: int, into: memoryview) -> None:
        """Read through the page cache, from the storage, and leave the cache as small as before."""
        os.posix_fadvise(self._plain, offset, len(into), os.POSIX_FADV_DONTNEED)
        _read_all(self._plain, offset, into)
        os.posix_fadvise(self._plain, offset, len(into), os.POSIX_FADV_DONTNEED)


def _read_all(fd: int, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        got = os.preadv(fd, [into[done:]], offset + done)
        if got == 0:
            raise EndedEarly(offset + done)
        done += got


def _write_all(fd: int, offset: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += os.pwritev(fd, [content[done:]], offset + done)


def _data(fd: int, within: Range) -> Iterator[Range]:
    """Yield the data ranges by SEEK_DATA and SEEK_HOLE, cut to `within`."""
    start = within.start
    while start < within.end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= within.end:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), within.end)
        yield Range(start, end)
        start = end
