"""Whether two names are of one file: by what they lead to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmferry.model import Url, Where
from vmferry.qemu.names import whoever_asks

Identity = tuple[str, int, int]


def identity_of(path: Path) -> Identity | None:
    """Return device and inode of a file, or the number of a device; None where nothing is, or nobody may look."""
    try:
        return of_status(path.stat())
    except (OSError, ValueError):
        return None


def of_status(status: os.stat_result) -> Identity:
    """Return what identifies a file by its status. A device counts by its number: it has many nodes."""
    if stat.S_ISBLK(status.st_mode):
        return "device", os.major(status.st_rdev), os.minor(status.st_rdev)
    return "file", status.st_dev, status.st_ino


class Identities:
    """The files whose users are asked for, to be found by any name."""

    def __init__(self, files: Sequence[Where]) -> None:
        self.files = tuple(dict.fromkeys(files))
        self._known = {file: identity_of(file) for file in self.files if isinstance(file, Path)}
        self._real = {file: _real(file) for file in self.files if isinstance(file, Path)}
        self._urls = {file: whoever_asks(file) for file in self.files if isinstance(file, Url)}

    def matching(self, where: Where) -> Iterator[Where]:
        """Yield those of the files that this name means."""
        if isinstance(where, Url):
            yield from (file for file, url in self._urls.items() if url == whoever_asks(where))
            return
        identity, real = identity_of(where), _real(where)
        for file, known in self._known.items():
            if (known is not None and known == identity) or self._real[file] == real:
                yield file

    def named(self, name: str) -> Iterator[Where]:
        """Yield those of the files that have this name, in whatever folder."""
        yield from (file for file, real in self._real.items() if name in (file.name, real.name, str(real)))

    def within(self, folder: Path) -> Iterator[Where]:
        """Yield those of the files that lie in this folder, or in one within it."""
        real = _real(folder)
        yield from (file for file, path in self._real.items() if path.is_relative_to(real))

    def of(self, identity: Identity) -> Iterator[Where]:
        yield from (file for file, known in self._known.items() if known == identity)

    def is_file(self, file: Where, identity: Identity) -> bool:
        return isinstance(file, Path) and self._known.get(file) == identity

    @property
    def known(self) -> dict[Path, Identity]:
        """The files that are there, with their identities."""
        return {file: identity for file, identity in self._known.items() if identity is not None}


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links
        return path
