"""Files that survive a crash: what a call wrote, named or removed is on the disk when it returns."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from vmferry.errors import DestinationExists
from vmferry.model.names import maker_of

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES}
"""EACCES: Linux's protected_hardlinks may refuse a link to a file of somebody else."""
_NO_RENAMES = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
_AT_FDCWD, _NOREPLACE = -100, 1


def sync(path: Path) -> None:
    """Make a file's content durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_CLOEXEC)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def write(path: Path, content: bytes) -> None:
    """Replace a small file, readable by its owner alone: a crash leaves the old one or the new one. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    _write(fresh, content, 0o600)
    fresh.replace(path)
    sync_folder(path.parent)


def create(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Make a small file that nobody sees before it is whole. Raises FileExistsError, also if another one was first."""
    fresh = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    _write(fresh, content, mode)
    try:
        _name_new(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file, or a link as the link that it is; it may be gone already. Raises OSError."""
    if not lies(path):
        return
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def there(path: Path) -> bool:
    """Is it there? A file whose name is longer than its file system bears cannot be. Raises OSError."""
    return _seen(path, follow=True)


def lies(path: Path) -> bool:
    """Has something that name, be it a link that leads nowhere? As `there`. Raises OSError."""
    return _seen(path, follow=False)


def _seen(path: Path, *, follow: bool) -> bool:
    try:
        path.stat(follow_symlinks=follow)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


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
    if not (maker_of(part.name) or maker_of(claim.name)) or part.samefile(claim):
        return False
    said = os.fsencode(part.name)
    return claim.stat().st_size <= len(said) and said.startswith(claim.read_bytes())


def _name_new(fresh: Path, path: Path) -> None:
    try:
        path.hardlink_to(fresh)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        rename_noreplace(fresh, path)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
