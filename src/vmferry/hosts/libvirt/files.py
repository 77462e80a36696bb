"""What a host knows of its files and folders, and small copies of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from vmferry.durable import sync, sync_folder, there
from vmferry.errors import SourceInUse
from vmferry.model import FileEntry, Folder
from vmferry.model.names import maker_of
from vmferry.qemu.locks import guard_reading

_PIECE = 8 << 20
_SECTOR = 512


def small_copy(source: Path, destination: Path) -> None:
    shutil.copyfile(source, destination)
    status = source.stat()
    os.chown(destination, status.st_uid, status.st_gid)
    destination.chmod(status.st_mode & 0o7777)
    sync(destination)
    sync_folder(destination.parent)


def content_of(path: Path) -> str:
    """Return the BLAKE3 hash of what a guest reads of a raw file, in whole sectors; empty if there is no file.

    QEMU serves 1,000,000 bytes as 1,000,448.
    """
    if not path.is_file():
        return ""
    hashed = blake3(max_threads=blake3.AUTO)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hashed.update(piece)
        hashed.update(bytes(-file.tell() % _SECTOR))
    return str(hashed.hexdigest())


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
    """Have the kernel begin to read a file that was written past its cache, while the program that needs it starts."""
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
"""As many symbolic links as Linux follows."""


def entry(path: Path) -> FileEntry | None:
    """Return the file that a path leads to, link by link; None where no file is in the end, nor can be."""
    links: list[Path] = []
    at = path
    while at.is_symlink() and len(links) < MOST_LINKS:
        links.append(at)
        at = at.parent / at.readlink()
    if not there(at) or not at.is_file():
        return None
    status = at.stat()
    real = at.parent.resolve() / at.name if links else at
    return FileEntry(real, tuple(links), status.st_blocks * _SECTOR, status.st_nlink, status.st_ino)


def renew(path: Path) -> None:
    """Set the time of a file's last change to now, durably."""
    os.utime(path)
    sync(path)


def leftovers(folders: Sequence[Path]) -> list[Path]:
    found: set[Path] = set()
    for place in folders:
        if place.is_dir():
            found.update(p for p in place.iterdir() if maker_of(p.name))
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
