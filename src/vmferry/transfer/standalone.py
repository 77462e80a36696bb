"""One disk from one place to another, whole: copied, compared, given its name. The engine as a tool.

A file gets its final name when all is proved, by a link that never overwrites; until then it lies beside it
under a name of ours. The same call again goes on after whatever ended the last one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vmferry.errors import BadPlace, CopyRunning, DestinationExists
from vmferry.model.seals import Seal
from vmferry.transfer.bookmarks import read, sync_folder
from vmferry.transfer.contract import Compared, Copied, Transfer, Watch
from vmferry.transfer.file import writing
from vmferry.transfer.looking import digest, end_of
from vmferry.transfer.places import Place, Scheme, Where
from vmferry.transfer.route import Kind
from vmferry.transfer.seals import moved
from vmferry.transfer.service import compare, copy, forget
from vmferry.transfer.sites import remove, site_of

PREFIX = ".vmferry-copy-"


@dataclass(frozen=True, slots=True)
class Carried:
    """What a finished call did."""

    copied: Copied | None  # None: an earlier call had copied all, and given it its name
    compared: Compared
    seal: Seal | None


class Carriage:
    """A copy from here to there, remembered in a folder of its own."""

    def __init__(self, source: Place, destination: Place, memory: Path) -> None:
        self._name = digest(source.shown, source.format, destination.shown, destination.format).hex()
        self._source = source
        self._destination = destination
        self._folder = memory / self._name

    def run(self, copying: Watch, comparing: Watch, streams: int) -> Carried:
        """Copy, or go on; compare; give it its name; forget.

        Raises BadPlace if there is no source, CopyRunning, DestinationExists if something of that name is not
        ours, and what copy() and compare() raise.
        """
        if self._source.scheme is Scheme.PATH and not self._source.path.exists():
            raise BadPlace(place=self._source.shown, reason="there is no such file or device")
        with self._alone():
            named = self._named()
            transfer = self._transfer(self._destination if named else self._part())
            copied = None if named else copy(transfer, copying, streams)
            compared = compare(transfer, comparing, streams)
            if not named and transfer.destination != self._destination:
                _promote(transfer.destination.path, self._destination.path)
            forget(transfer)
        return Carried(copied, compared, moved(compared.seal, self._destination))

    @property
    def _bookmarks(self) -> Path:
        return self._folder / "bookmarks"

    @property
    def _lock(self) -> Path:
        return self._folder / "lock"

    def _transfer(self, destination: Place) -> Transfer[Where, Place]:
        return Transfer(self._source, destination, self._bookmarks)

    def _part(self) -> Place:
        """Where it lies until it is whole: a device or a URL has no other name."""
        if end_of(self._destination).kind is not Kind.FILE:
            return self._destination
        final = self._destination.path
        part = final.with_name(f"{PREFIX}{self._name[:12]}-{final.name}"[:255])
        return Place(str(part), self._destination.format)

    def _named(self) -> bool:
        """Did an earlier call give the copy its name, and was cut off then? Raises DestinationExists if another did."""
        if end_of(self._destination).kind is not Kind.FILE or not os.path.lexists(self._destination.path):
            return False
        with writing(self._folder):
            found = read(self._bookmarks)
        if not (found and found.whole and site_of(self._destination).owned(found)):
            raise DestinationExists(path=self._destination.at)
        remove(self._part().path)
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock, which the kernel frees with this process; what is left of a copy stays in the folder."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not self._locked(fd):
                raise CopyRunning(destination=self._destination.shown)
            try:
                yield
            finally:
                self._tidy()
        finally:
            os.close(fd)

    def _locked(self, fd: int) -> bool:
        """Did we get the lock, and is it still that of the folder? One that just ended may have removed it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(fd), self._lock.stat())
        except (BlockingIOError, FileNotFoundError):
            return False

    def _tidy(self) -> None:
        if not self._bookmarks.exists():
            with suppress(OSError):  # another call for the same may just begin there
                self._lock.unlink()
                self._folder.rmdir()


def _promote(part: Path, final: Path) -> None:
    """Give the copy its name without overwriting; a crash in between leaves both names on one file."""
    with writing(final):
        try:
            os.link(part, final, follow_symlinks=False)
        except FileExistsError:
            raise DestinationExists(path=final) from None
        sync_folder(final.parent)
        part.unlink()
        sync_folder(final.parent)
