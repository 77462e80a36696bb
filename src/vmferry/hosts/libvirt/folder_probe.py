"""Tests which files a folder really takes, with one trial file that is gone when the answer is there.

What a file system says of itself is not enough: a folder below one that QEMU's user may not enter, a file system
without locks, one whose sectors are larger than those that a disk comes from. All that was once found after hours of
copying, or when the VM was started from there.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from vmferry import durable
from vmferry.errors import VmferryError
from vmferry.errors.system import said
from vmferry.model import Finding, FolderUse, Severity
from vmferry.model.names import ID, new_id
from vmferry.qemu.locks import guard_writing

_HOLE_BYTES = 1 << 20
_ANOTHER = "or choose another folder"
_PASSABLE = 'for d do [ -x "$d" ] || { printf %s "$d"; exit 1; }; done'
_OPENABLE = ': <> "$1"'
_SECTOR = 4096
_PROBE = re.compile(rf"vmferry-{ID}\.probe(\.named)?")
PROBE_TIMEOUT_S = 30
"""Seconds that the probe of a folder may take: a storage that hangs must not hold up a plan."""
OLD_S = 3600.0
"""Seconds; no probe takes that long: one this old was left by a process that was killed."""


class User(NamedTuple):
    """The user that QEMU runs as."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def groups(self) -> list[int]:
        """The user's own group, and those that name the user as a member, as libvirt gives them to QEMU."""
        named = [group.gr_gid for group in grp.getgrall() if self.name in group.gr_mem]
        return sorted({self.gid, *named})


def probe(folder: Path, use: FolderUse, user: User | None) -> Sequence[Finding]:
    """Return what keeps such files from lying in the folder. `user`: QEMU's, where it is not this process's own."""
    try:
        return _tried(folder, use, user)
    except subprocess.TimeoutExpired:
        what = f"{folder} did not answer QEMU's user within {PROBE_TIMEOUT_S} s"
        return [_blocker(what, f"see whether that storage answers, {_ANOTHER}")]


def _tried(folder: Path, use: FolderUse, user: User | None) -> Sequence[Finding]:
    found = list(_of_room(folder, use))
    if user is not None and (closed := _closed_to(user, folder)):
        return [*found, closed]
    _remove_old(folder)
    file = folder / f"vmferry-{new_id()}.probe"
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return [*found, _blocker(f"{folder} takes no file: {said(error)}", f"mend that, {_ANOTHER}")]
    try:
        with os.fdopen(fd, "r+b", buffering=0):
            found += [*_of_locks(folder, fd), *_of_size(folder, fd, use)]
        found += [*_of_direct(folder, file, use), *_of_sectors(file, use), *_of_user(folder, file, user)]
        found += _of_names(folder, file)
    except OSError as error:
        found.append(_blocker(f"a file in {folder} could not be tried: {said(error)}", f"mend that, {_ANOTHER}"))
    finally:
        for left in (file, _renamed(file)):
            with suppress(OSError):
                left.unlink()
    return found


def _remove_old(folder: Path) -> None:
    """Remove the probes that killed processes left: they belong to no job, so nothing else ever would."""
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                if _PROBE.fullmatch(file.name) and file.lstat().st_mtime < time.time() - OLD_S:
                    file.unlink()


def _blocker(what: str, cure: str) -> Finding:
    return Finding(Severity.BLOCKER, what, cure)


def _renamed(file: Path) -> Path:
    return file.with_name(f"{file.name}.named")


def _of_room(folder: Path, use: FolderUse) -> Iterator[Finding]:
    longest = os.pathconf(folder, "PC_NAME_MAX")
    if 0 < longest < use.longest_name_bytes:
        what = f"{folder} takes file names of {longest} bytes, the move makes one of {use.longest_name_bytes}"
        yield _blocker(what, f"give the image a shorter name first, {_ANOTHER}")
    space = os.statvfs(folder)
    if space.f_files and space.f_favail < use.files:  # a file system that makes them as it needs them tells 0 of 0
        what = f"{folder} has room for {space.f_favail} more files (inodes), the move makes {use.files}"
        yield _blocker(what, f"remove files there, {_ANOTHER}")


def _closed_to(user: User, folder: Path) -> Finding | None:
    """Return a finding on the first folder on the way that QEMU's user may not enter, be it by mode, ACL or squash."""
    way = dict.fromkeys([*reversed(folder.parents), folder, *reversed(folder.resolve().parents), folder.resolve()])
    ended = _as(user, _PASSABLE, *map(str, way))
    if ended.returncode == 0 or not ended.stdout:
        return None
    closed = ended.stdout
    what = f"QEMU runs as {user.name}, who may not enter {closed}, so it could not open a disk in {folder}"
    return _blocker(what, f"let it in: setfacl -m u:{user.name}:x {quote(closed)}, {_ANOTHER}")


def _as(user: User, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a shell's own tests as that user, who may not be allowed to run other programs."""
    return subprocess.run(
        ("/bin/sh", "-c", script, "sh", *arguments),
        user=user.uid,
        group=user.gid,
        extra_groups=user.groups,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",  # a folder's name may be no UTF-8
        timeout=PROBE_TIMEOUT_S,
    )


def _of_user(folder: Path, file: Path, user: User | None) -> Iterator[Finding]:
    if user is None:
        return
    with suppress(OSError):  # as libvirt does before QEMU opens it; where it cannot, the try below tells what follows
        os.chown(file, user.uid, user.gid)
    if _as(user, _OPENABLE, str(file)).returncode:
        what = f"QEMU runs as {user.name}, who may not write a file in {folder}, though it was given one"
        yield _blocker(what, f"mount it so that files there can be given to {user.name}, {_ANOTHER}")


def _of_locks(folder: Path, fd: int) -> Iterator[Finding]:
    """Yield a finding if the file cannot be locked: QEMU opens no image that it cannot lock."""
    try:
        guard_writing(fd)
    except OSError as error:
        what = f"files in {folder} cannot be locked, and QEMU opens no disk without: {said(error)}"
        yield _blocker(what, f"mount it with locks (an NFS server's lock service must run), {_ANOTHER}")


def _of_size(folder: Path, fd: int, use: FolderUse) -> Iterator[Finding]:
    """Yield a finding if the folder takes no file of the largest size, tried by a hole.

    Where there are no holes it would have to be written, so it is not tried.
    """
    try:
        os.ftruncate(fd, _HOLE_BYTES)
        if os.fstat(fd).st_blocks * 512 < _HOLE_BYTES:
            os.ftruncate(fd, use.largest_bytes)
        os.ftruncate(fd, 0)
    except OSError as error:
        what = f"{folder} takes no file of {use.largest_bytes >> 20} MiB: {said(error)}"
        yield _blocker(what, f"raise that limit, {_ANOTHER}")


def _of_direct(folder: Path, file: Path, use: FolderUse) -> Iterator[Finding]:
    if not use.direct:
        return
    try:
        os.close(os.open(file, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        what = f"files in {folder} cannot be opened past the page cache, as a disk's cache mode asks: {said(error)}"
        yield _blocker(what, f"give the disk another cache mode (`virsh edit`, then start the VM anew), {_ANOTHER}")


def _of_sectors(file: Path, use: FolderUse) -> Iterator[Finding]:
    """Yield a finding for each raw disk that ends within a sector of this folder's storage.

    QEMU writes whole sectors past the cache, and cannot open such a disk there. How large they are it finds by reads of
    the first block, and takes them for 4096 bytes where that is a hole.
    """
    for size in use.raw_bytes:
        file.write_bytes(bytes(_SECTOR))
        os.truncate(file, size)
        words = ("qemu-io", "-f", "raw", "-t", "none", "-c", "quit", str(file))
        try:
            ended = subprocess.run(
                words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PROBE_TIMEOUT_S
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return
        if ended.returncode and "alignment" in ended.stderr:
            yield _of_odd_size(file.parent, size)


def _of_odd_size(folder: Path, size: int) -> Finding:
    whole = -(-size // _SECTOR) * _SECTOR
    what = f"a raw disk of {size} bytes cannot be opened in {folder} with the cache mode that it has: it writes "
    what += "whole sectors, and those are larger there"
    cure = f"make it {whole} bytes long first (virsh blockresize VM DISK {whole}B; off: qemu-img resize -f raw IMAGE "
    return _blocker(what, f"{cure}{whole}), or use --format qcow2, {_ANOTHER}")


def _of_names(folder: Path, file: Path) -> Iterator[Finding]:
    """Yield a finding if the file cannot be renamed, which is how a finished copy gets its name."""
    try:
        durable.promote(file, _renamed(file))
    except (OSError, VmferryError) as error:
        why = said(error) if isinstance(error, OSError) else str(error)
        yield _blocker(f"a file in {folder} cannot be given another name: {why}", f"mend that, {_ANOTHER}")
