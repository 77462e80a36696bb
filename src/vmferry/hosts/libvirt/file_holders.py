"""Which programs of this host have a file open, and whether a QEMU elsewhere has locked it."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vmferry.hosts.libvirt.file_identity import Identities, Identity, of_status
from vmferry.model import FileUser, NamedIn, UserKind, Where
from vmferry.model.files import LOCKED, OPEN

PROC = Path("/proc")
_LOOPS = Path("/sys/block")
_SERVERS = ("qemu", "kvm", "nbdkit")
"""Programs that need an image for as long as they have it open, also if only to read it."""
_F_OFD_GETLK = 36
_LOCK = struct.Struct("hhqqi4x")
_LOCKED_FROM, _LOCKED_BYTES = 100, 200
"""The first byte and the number of bytes of QEMU's locks on an image, see qemu.locks."""


def holders(wanted: Identities, known: Sequence[FileUser]) -> Iterator[FileUser]:
    """Yield the programs and loop devices that have one of the files open, and QEMUs elsewhere that have locked it.

    `known`: users found by other ways, so that a lock is explained by a VM that is known to run on the file.
    """
    seen = set[Where]()
    for file, user in _open(wanted):
        seen.add(file)
        if user is not None:
            yield user
    yield from _loops(wanted)
    explained = seen | {user.file for user in known if user.named_in is NamedIn.RUNNING}
    for path in wanted.known:
        if path not in explained and _locked(path):
            yield FileUser(path, UserKind.UNKNOWN, "a QEMU that cannot be seen from here", LOCKED)


def _open(wanted: Identities) -> Iterator[tuple[Where, FileUser | None]]:
    """Yield each of the files that is open, and its user; None for a process that only reads it and is done soon."""
    identities = set(wanted.known.values())
    for process in PROC.iterdir() if identities else ():
        if process.name.isdigit() and int(process.name) != os.getpid():
            for identity, descriptor in _descriptors(process, identities):
                user = _user(process, descriptor)
                for file in wanted.of(identity):
                    yield file, None if user is None else _about(file, user)


def _may_be(process: Path, descriptor: str, inodes: set[int]) -> bool:
    """May the descriptor be of one of these inodes? True where that cannot be told.

    The kernel knows an inode's number: to ask a file on a server that is away would hang.
    """
    with suppress(OSError, ValueError):
        for line in (process / "fdinfo" / descriptor).read_text().splitlines():
            if line.startswith("ino:"):  # since Linux 5.14
                return int(line.split()[1]) in inodes
    return True


def _descriptors(process: Path, identities: set[Identity]) -> Iterator[tuple[Identity, Path]]:
    """Yield (identity, descriptor) of these that the process has open; one that may not be looked at shows by locks."""
    inodes = {number for kind, _, number in identities if kind == "file"}
    devices = any(kind == "device" for kind, _, _ in identities)
    with suppress(OSError):
        for entry in os.scandir(process / "fd"):
            if not (devices or _may_be(process, entry.name, inodes)):
                continue
            with suppress(OSError):
                identity = of_status(Path(entry.path).stat())
                if identity in identities:
                    yield identity, Path(entry.path)


def _user(process: Path, descriptor: Path) -> FileUser | None:
    with suppress(OSError, ValueError):
        name = (process / "comm").read_text().strip()
        words = (process / "cmdline").read_bytes().split(b"\0")
        if b"-uuid" in words:
            uuid = words[words.index(b"-uuid") + 1].decode()
            return FileUser(Path(), UserKind.VM, _named(words, uuid), OPEN, uuid, NamedIn.RUNNING)
        if name.startswith(_SERVERS) or _writes(process, descriptor):
            return FileUser(Path(), UserKind.PROCESS, f"process {process.name} ({name})", "open", process.name)
    return None


def _named(words: Sequence[bytes], uuid: str) -> str:
    """Return how to name a QEMU's VM: libvirt passes -name guest=NAME,..., commas doubled; the UUID if it does not."""
    with suppress(ValueError, IndexError):
        name = words[words.index(b"-name") + 1].decode(errors="replace").removeprefix("guest=")
        return f"VM {name.replace(',,', chr(0)).partition(',')[0].replace(chr(0), ',')}"
    return f"VM {uuid}"


def _writes(process: Path, descriptor: Path) -> bool:
    for line in (process / "fdinfo" / descriptor.name).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _about(file: Where, user: FileUser) -> FileUser:
    return FileUser(file, user.kind, user.who, user.how, user.id, user.named_in)


def _loops(wanted: Identities) -> Iterator[FileUser]:
    """Yield the loop devices on these files, which no process has open."""
    for backing in _LOOPS.glob("loop*/loop/backing_file"):
        with suppress(OSError):
            path = Path(backing.read_text().strip())
            device = backing.parents[1].name
            for file in wanted.matching(path):
                yield FileUser(file, UserKind.PROCESS, f"the loop device /dev/{device}", "open", device)


def _locked(path: Path) -> bool:
    """Is the file locked by a QEMU of this host or, over NFS, of another one?"""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCKED_FROM, _LOCKED_BYTES, 0)
            return bool(_LOCK.unpack(fcntl.fcntl(descriptor, _F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
        finally:
            os.close(descriptor)
    return False
