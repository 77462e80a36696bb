"""Users of a file, and what becomes of the files that a move leaves behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vmferry.model.vms import Where


class UserKind(StrEnum):
    VM = "vm"
    IMAGE = "image"
    """Another file names it in its header, whether any VM names that one or not."""
    PROCESS = "process"
    """A program of this host has it open."""
    JOB = "job"
    """Another job of this manager reads or writes it."""
    UNKNOWN = "unknown"
    """Somebody could not be asked, which counts as a user."""


class NamedIn(StrEnum):
    """Which of libvirt's records of a VM names a file."""

    RUNNING = "as it runs"
    NEXT_START = "from its next start on"
    SNAPSHOT = "in a snapshot"
    CHECKPOINT = "in a checkpoint"
    SAVED = "in its saved memory"
    NOWHERE = ""
    """In none: it is no VM that names it."""


@dataclass(frozen=True, slots=True)
class FileUser:
    """A user of a file, and how the file is named there."""

    file: Where
    """As it was asked for."""
    kind: UserKind
    who: str
    """For people: "VM web", "the image /x/y.qcow2", "job abcd2345"."""
    how: str = ""
    """For people: "disk vda, volume x of pool y"."""
    id: str = ""
    """A VM's UUID, an image's path, a process's number, a job's id."""
    named_in: NamedIn = NamedIn.NOWHERE
    disk: str = ""
    """The target of a VM's disk that names it."""
    through: Path | None = None
    """The image whose header names it; None for one that is named by the VM itself."""
    sure: bool = True
    """False of a volume that libvirt cannot find now, and of which only the name is the same."""

    @property
    def holds(self) -> bool:
        """True if the user is known to need the file.

        A user that could not be asked may need it: that keeps a file, but forbids no volume.
        """
        return self.kind is not UserKind.UNKNOWN or self.how == LOCKED

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.how, str(self.named_in))))
        return f"{self.who} ({where})" if where else self.who


OPEN = "open in its QEMU"
LOCKED = "it has locked it"
MOST_NAMED = 3


def listed(users: Collection[FileUser]) -> str:
    """Return the users as text for people: each once, by the first way in which it was found, MOST_NAMED at most."""
    first: dict[str, str] = {}
    for user in users:
        first.setdefault(user.who, str(user))
    kept = list(first.values())
    more = f" and {len(kept) - MOST_NAMED} more" if len(kept) > MOST_NAMED else ""
    return ", ".join(kept[:MOST_NAMED]) + more


class Fate(StrEnum):
    """What becomes of a file at the source."""

    REMOVED = "removed"
    RENAMED = "renamed"
    """Kept under a dated name, by --keep-source."""
    STAYS = "stays"
    """Copied, and left as it is."""


@dataclass(frozen=True, slots=True)
class SourceFileFate:
    """A file that a move copies, and what becomes of it at the source in the end."""

    path: Where
    """As the VM, or the image above, names it."""
    role: str
    """For people: "disk vda", "base of vda", "UEFI variables"."""
    fate: Fate
    why: str
    bytes: int = 0
    """That it takes on its storage."""
    data: Path | None = None
    """The file itself, where `path` is a symbolic link to it."""
    links: tuple[Path, ...] = ()
    """The symbolic links that lead to it, `path` first; those that lead nowhere in the end go with it."""
    freed_bytes: int = 0
    """In a receipt: what became free on its storage."""

    @property
    def goes(self) -> bool:
        return self.fate is not Fate.STAYS

    @property
    def names(self) -> tuple[Where, ...]:
        """All known names of the file."""
        return (self.path, *self.links, *((self.data,) if self.data else ()))


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a path leads to on a host."""

    path: Path
    """The file itself, or where the last link leads."""
    links: tuple[Path, ...] = ()
    """The symbolic links on the way, first the path itself; those of folders aside."""
    bytes: int = 0
    """That it takes on its storage."""
    names: int = 1
    """Hard links: removing one of several frees nothing."""
    inode: int = 0
    """Its number on its file system: another file of the same name has another one."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """What a move takes away from the source; tells the VM's own uses of a file from those of others."""

    vm: str
    """UUID"""
    disks: frozenset[str]
    """Targets of the disks that move."""
    paths: frozenset[Where]
    """All names of the files that go."""
    files: frozenset[Where] = frozenset()
    """Those of them that are no images: UEFI variables."""
    own: frozenset[Path] = frozenset()
    """Images that the job itself has made: once it is over they need nothing. A copy of one, or another hard link of
    it, is somebody's, whatever its name."""
    moved: bool = False
    """The VM runs, or would start, from its new place: what it still names is needed, but for a checkpoint's name,
    since its bitmaps lie in the image itself."""

    def others(self, users: Sequence[FileUser]) -> list[FileUser]:
        """Return the users who will still need the file when all that goes has gone."""
        return [user for user in users if not self._own(user)]

    def others_in_turn(self, users: Sequence[FileUser]) -> dict[Where, list[FileUser]]:
        """Return the files that others need, each with its users.

        A file that stays for them may in turn need others of the files, which then stay as well.
        """
        needed: dict[Where, list[FileUser]] = {}
        while True:
            leaving = replace(self, paths=self.paths - needed.keys())
            found = {path: leaving.others([u for u in users if u.file == path]) for path in self.paths}
            fresh = {path: others for path, others in found.items() if others}
            if fresh.keys() == needed.keys():
                return fresh
            needed = fresh

    def _own(self, user: FileUser) -> bool:
        if user.kind is UserKind.IMAGE:
            return Path(user.id) in self.own | self.paths
        if user.kind is not UserKind.VM or user.id != self.vm:
            return False
        if user.through is not None and user.through not in self.paths:
            return False  # by way of an image of its own that stays
        if self.moved or user.named_in is NamedIn.CHECKPOINT:
            return user.named_in is NamedIn.CHECKPOINT
        snapshot = user.named_in is NamedIn.SNAPSHOT  # rewritten when the VM is settled
        return snapshot or user.disk in self.disks or user.file in self.files or user.how == OPEN
