"""The files in folders where images may lie that no VM names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

DEPTH = 2
"""Levels of folders looked at below a folder: a storage with a folder for each VM, and one within."""
MOST = 20_000


Seen = dict[tuple[int, int], int]
"""Device and inode of a folder, and how many folders deep it was looked at."""


class TooMany(Exception):
    """A folder holds more files than can be looked at quickly."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


BESIDE = 5_000


def files_beside(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the files around these folders and in folders beside them, no more than can be looked at quickly."""
    seen: Seen = {}
    for parent in dict.fromkeys(folder.resolve().parent for folder in folders):
        if parent != parent.parent:  # never all of the machine
            with suppress(OSError):
                yield from islice(_walk(parent, 1, seen), BESIDE)


def files_in(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield each regular file in these folders once, links to files too, whatever its name. Raises OSError, TooMany."""
    seen: Seen = {}
    for folder in dict.fromkeys(folders):
        for count, path in enumerate(_walk(folder, DEPTH, seen)):
            if count == MOST:
                raise TooMany(folder)
            yield path


def _walk(folder: Path, depth: int, seen: Seen) -> Iterator[Path]:
    """Yield the files in a folder and in `depth` levels of folders below, but for those that were yielded before.

    A folder that is gone, or not there yet, holds nothing. One that was looked at within another may reach deeper.
    """
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (status.st_dev, status.st_ino)
    before = seen.get(identity, -1)
    if before >= depth:
        return
    seen[identity] = depth
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if depth:
                yield from _walk(Path(entry.path), depth - 1, seen)
        elif before < 0 and _is_file(entry):
            yield Path(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False  # a link that leads nowhere, or a file that has just gone
