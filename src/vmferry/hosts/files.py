"""Files of a host: names given and taken back without ever overwriting, durable when a call returns."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from vmferry.errors import DestinationExists, SourceInUse
from vmferry.model import Folder
from vmferry.transfer.locks import guard_reading

TAG = re.compile(r"(^|\.)vmferry-[a-z0-9]{8}(\.|$)")
"""A job's id in a file's name."""
_PIECE = 8 << 20
_SECTOR = 512


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def promote(part: Path, final: Path) -> None:
    """Rename without overwriting: link, then unlink; a crash between leaves both names on one file."""
    if not part.exists():
        return
    try:
        os.link(part, final)
    except FileExistsError:
        if not part.samefile(final):
            raise DestinationExists(path=final) from None
    part.unlink()
    sync_folder(final.parent)


def remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
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
