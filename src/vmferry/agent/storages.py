"""The storages that this host serves: declared by the manager, kept here, checked before every use.

A file in each of them names it by a UUID, so that two hosts that have the same storage know it, whatever they call
it; and so that a storage that is not mounted is not taken for an empty one.
"""

from __future__ import annotations

import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pydantic import TypeAdapter

from vmferry.authority import check_name
from vmferry.durable import create, write
from vmferry.errors import NoSuchStorage, StorageKnown, StorageUnfit
from vmferry.errors.system import in_words

MARKER = ".vmferry-storage"
_LONGEST_MARKER = 64


@dataclass(frozen=True, slots=True)
class Declared:
    """A storage that this host serves."""

    name: str
    path: Path
    """The path as it was declared: a folder, or a block device."""
    uuid: str
    grade: str = ""

    @property
    def real(self) -> Path:
        return self.path.resolve()

    @property
    def trouble(self) -> str | None:
        """Why the storage cannot be used now; None when it can."""
        if self.path.is_block_device():
            return None
        if not self.path.is_dir():
            return f"storage {self.name} is not there: is {self.path} mounted?"
        if marker_of(self.path) != self.uuid:
            return f"storage {self.name} lacks its {MARKER}, or has another one's: is {self.path} mounted?"
        return None


_FILE = TypeAdapter(tuple[Declared, ...])


class Storages:
    """The storages of one agent, kept durably in a file of its state folder."""

    def __init__(self, host: str, state: Path) -> None:
        self._host = host
        self._file = state / "storages.json"
        self._lock = Lock()
        self._all = _FILE.validate_json(self._file.read_bytes()) if self._file.exists() else ()

    def all(self) -> tuple[Declared, ...]:
        return self._all

    def declare(self, name: str, path: Path, grade: str) -> Declared:
        """Serve a storage from now on; a repeated declaration is no error. Raises StorageKnown, StorageUnfit."""
        check_name(name)
        with self._lock:
            for known in self._all:
                if known.name == name and known.path == path:
                    return known
                if known.name == name:
                    raise StorageKnown(host=self._host, storage=name, path=known.path)
            made = Declared(name, path, self._marked(path), grade)
            self._write((*self._all, made))
            return made

    def remove(self, name: str) -> None:
        """Stop serving a storage; its files stay, its marker too. Raises NoSuchStorage."""
        with self._lock:
            left = tuple(known for known in self._all if known.name != name)
            if len(left) == len(self._all):
                raise NoSuchStorage(host=self._host, storage=name)
            self._write(left)

    def of(self, real: Path) -> Declared | None:
        """Return the innermost storage that a path without symbolic links lies in, None if there is none."""
        found = [known for known in self._all if real.is_relative_to(known.real)]
        return max(found, key=lambda known: len(known.real.parts), default=None)

    def _marked(self, path: Path) -> str:
        """Return the storage's UUID: the one that another host gave it already, or a new one. Raises StorageUnfit."""
        if not path.is_absolute() or ".." in path.parts:
            raise StorageUnfit(path=path, host=self._host, reason="name it by an absolute path without ..")
        if path.is_block_device():
            return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._host}:{path}"))
        if path.resolve() == Path("/"):
            raise StorageUnfit(path=path, host=self._host, reason="it would serve everything: name a folder below")
        try:
            return marker_of(path) or _mark(path)
        except (OSError, ValueError) as error:
            raise StorageUnfit(path=path, host=self._host, reason=in_words(error)) from error

    def _write(self, declared: tuple[Declared, ...]) -> None:
        write(self._file, _FILE.dump_json(declared, indent=1))
        self._all = declared


def marker_of(path: Path) -> str | None:
    """Return the UUID in a storage's marker file, None if it has none. Raises ValueError if it is something else."""
    try:
        fd = os.open(path / MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path / MARKER} is no file")
        return str(uuid.UUID(file.read(_LONGEST_MARKER).decode().strip()))


def _mark(path: Path) -> str:
    """Mark a storage with a new UUID and return it. If two hosts do so at once, one wins, and both return its UUID."""
    made = str(uuid.uuid4())
    try:
        create(path / MARKER, f"{made}\n".encode(), 0o644)
    except FileExistsError:
        return marker_of(path) or made
    return made
