"""Files of a host: names given and taken back without ever overwriting, durable when a call returns."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from vmferry.errors import DestinationExists, SourceInUse
from vmferry.model import FileEntry, Folder
from vmferry.model.names import ID
from vmferry.qemu.locks import guard_reading

TAG = re.compile(rf"(^|\.)vmferry-{ID}(\.|$)")
"""A job's id in a file's name."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES}
"""EACCES: Linux's protected_hardlinks may refuse a link to a file of somebody else."""
_NO_RENAMES = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_AT_FDCWD, _NOREPLACE = -100, 1
_PIECE = 8 << 20
_SECTOR = 512


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def promote(part: Path, final: Path) -> None:
    """Rename without overwriting: link, then unlink; a crash between leaves both names on one file.

    Where there are no links (exfat, some FUSE file systems) the kernel renames without overwriting, or, where it cannot
    do that either, the name is claimed by a file of ours first.
    """
    if not there(part):
        return
    if there(final) and _claims(part, final):  # cut off on the way in the other direction
        part.unlink()
    else:
        _name(part, final)
    sync_folder(final.parent)


def _name(part: Path, final: Path) -> None:
    try:
        os.link(part, final)
    except FileExistsError:
        if part.samefile(final):
            part.unlink()
        elif _claims(final, part):
            part.replace(final)
        else:
            raise DestinationExists(path=final) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_anew(part, final)
    else:
        part.unlink()


def _rename_anew(part: Path, final: Path) -> None:
    try:
        rename_noreplace(part, final)
    except FileExistsError:
        raise DestinationExists(path=final) from None
    except OSError as error:
        if error.errno not in _NO_RENAMES:
            raise
        _claim(part, final)
        part.replace(final)


def rename_noreplace(path: Path, to: Path) -> None:
    """renameat2(2) with RENAME_NOREPLACE, which Python has no call for. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(to), _NOREPLACE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path), None, str(to))


def _claim(part: Path, final: Path) -> None:
    """Make a file that says whose the name is. Raises DestinationExists."""
    try:
        fd = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise DestinationExists(path=final) from None
    with os.fdopen(fd, "wb") as file:
        file.write(os.fsencode(part.name))


def _claims(claim: Path, part: Path) -> bool:
    """Does the file say that its name is for that one? An empty one is a claim too, cut off as it was made.

    So it is told only between names of which one is a job's own.
    """
    if not (TAG.search(part.name) or TAG.search(claim.name)) or part.samefile(claim):
        return False
    said = os.fsencode(part.name)
    return claim.stat().st_size <= len(said) and said.startswith(claim.read_bytes())


def remove(path: Path) -> None:
    if not (there(path) or path.is_symlink()):
        return
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def small_copy(source: Path, destination: Path) -> None:
    shutil.copyfile(source, destination)
    status = source.stat()
    os.chown(destination, status.st_uid, status.st_gid)
    destination.chmod(status.st_mode & 0o7777)
    fd = os.open(destination, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(destination.parent)


def content_of(path: Path) -> str:
    """BLAKE3 of what a guest reads of it, whole sectors: QEMU serves 1,000,000 bytes as 1,000,448; empty if none."""
    if not path.is_file():
        return ""
    hashed = blake3(max_threads=blake3.AUTO)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hashed.update(piece)
        hashed.update(bytes(-file.tell() % _SECTOR))
    return str(hashed.hexdigest())


def write_private(path: Path, content: bytes) -> None:
    """A small file, whole and durable, for its owner only."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def folder(path: Path) -> Folder:
    if not path.is_dir():
        return Folder(path, exists=False, writable=False, free_bytes=0, filesystem="")
    space = os.statvfs(path)
    return Folder(
        path,
        exists=True,
        writable=os.access(path, os.W_OK | os.X_OK) and not space.f_flag & os.ST_RDONLY,
        free_bytes=space.f_bavail * space.f_frsize,
        filesystem=f"{path.stat().st_dev:x}",
        real=path.resolve(),
    )


def read_ahead(path: Path) -> None:
    """Have the kernel begin to read a file that was written past its cache, while who needs it still starts."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


MOST_LINKS = 40
"""As Linux follows."""


def entry(path: Path) -> FileEntry | None:
    """What it leads to, link by link; None where no file is in the end, nor can be."""
    links: list[Path] = []
    at = path
    while at.is_symlink() and len(links) < MOST_LINKS:
        links.append(at)
        at = at.parent / at.readlink()
    if not there(at) or not at.is_file():
        return None
    status = at.stat()
    real = at.parent.resolve() / at.name if links else at
    return FileEntry(real, tuple(links), status.st_blocks * _SECTOR, status.st_nlink)


_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def there(path: Path) -> bool:
    """Is it there? A file whose name is longer than its file system bears cannot be."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def renew(path: Path) -> None:
    """Give it the time of now as that of its last change, durably."""
    os.utime(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def leftovers(folders: Sequence[Path]) -> list[Path]:
    found: set[Path] = set()
    for place in folders:
        if place.is_dir():
            found.update(p for p in place.iterdir() if TAG.search(p.name))
    return sorted(found)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep QEMU from writing to an image, with QEMU's own locks, for as long as the file is read.

    A VM that is started meanwhile gets QEMU's 'Failed to get "write" lock'. Raises SourceInUse when one
    writes already. A file system without such locks is left unguarded: the comparison of size and time of
    change stays as the second line.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        if not guard_reading(fd):
            raise SourceInUse(path=path)
        yield
    finally:
        os.close(fd)
