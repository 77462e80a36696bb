"""A copy of one disk from one place to another, start to end: copied, compared, given its final name.

A file gets its final name when all is proved, by a link that never overwrites; until then it lies beside it
under a temporary name. The same call resumes after whatever ended the last one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmferry.durable import promote
from vmferry.errors import BadPlace, CopyRunning, DestinationExists
from vmferry.model.seals import Seal
from vmferry.qemu.places import Place, Scheme
from vmferry.transfer.bookmarks import read
from vmferry.transfer.contract import Compared, Copied, Transfer, Watch
from vmferry.transfer.endpoints.claim import discard
from vmferry.transfer.endpoints.destination import OpenedDestination
from vmferry.transfer.endpoints.file import writing
from vmferry.transfer.endpoints.location import Location, Route, locate, locate_destination
from vmferry.transfer.endpoints.ownership import remove, site_of
from vmferry.transfer.endpoints.probe import digest
from vmferry.transfer.endpoints.route import PlaceKind, openings
from vmferry.transfer.service import compare, copy
from vmferry.transfer.verification.seals import moved

PREFIX = ".vmferry-copy-"


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The results of a finished copy of one disk."""

    copied: Copied | None  # None: an earlier call had copied all, and given it its name
    compared: Compared
    seal: Seal | None


class DiskCopy:
    """A resumable copy of one disk, with its bookmarks in a folder of its own."""

    def __init__(self, source: Place, destination: Place, memory: Path) -> None:
        self._name = digest(source.shown, source.format, destination.shown, destination.format).hex()
        self.source = source
        self.destination = destination
        self._folder = memory / self._name

    @cached_property
    def _to(self) -> Location:
        """The destination, looked at once for all calls."""
        return locate_destination(self.destination)

    def run(self, copying: Watch, comparing: Watch, streams: int) -> CopyResult:
        """Copy and compare, give the destination its name, and remove the bookmarks, all under one lock.

        Raises what carry(), hand_over() and forget() raise.
        """
        with self._alone():
            done = self._carry(copying, comparing, streams)
            seal = self._hand_over(done.seal)
            self._forget()
        return CopyResult(done.copied, done.compared, seal)

    def carry(self, copying: Watch, comparing: Watch, streams: int) -> CopyResult:
        """Copy, or resume; then compare. A file has its temporary name after this.

        Raises BadPlace if there is no source, CopyRunning, DestinationExists if something of that name is not
        ours, and what copy() and compare() raise.
        """
        with self._alone():
            return self._carry(copying, comparing, streams)

    def hand_over(self, seal: Seal | None) -> Seal | None:
        """Give the copied file its final name. Return the seal for that name. May be called again until forget().

        Raises CopyRunning, DestinationExists, DestinationUnwritable.
        """
        with self._alone():
            return self._hand_over(seal)

    def forget(self) -> None:
        """Remove the bookmarks. Raises CopyRunning, DestinationUnwritable."""
        with self._alone():
            self._forget()

    def give_up(self) -> None:
        """Remove the copy, even if it has its final name already but was not forgotten.

        A device or an export keeps what was written. Raises CopyRunning, DestinationUnwritable.
        """
        with self._alone():
            if self._bookmarks.exists():
                try:
                    named = self._named()
                except DestinationExists:
                    named = False
                discard(self._bookmarks, self._to if named else self._part())
                remove(self._bookmarks)

    def check(self) -> None:
        """Raise BadPlace if this copy is impossible, DestinationExists if a file there is not ours."""
        self._route()

    def _route(self) -> Route:
        """Return the way from the source to the name that the copy has now. Raises as check() does."""
        if self.source.scheme is Scheme.PATH and not self.source.path.exists():
            raise BadPlace(place=self.source.shown, reason="there is no such file or device")
        source = locate(self.source)
        _, way = openings(source.end, self._to.end)
        OpenedDestination(self._to, way, 0).check()
        there = self._to if self._named() else self._part()
        return Route(Transfer(self.source, there.place, self._bookmarks), source, there)

    def _carry(self, copying: Watch, comparing: Watch, streams: int) -> CopyResult:
        route = self._route()
        copied = None if self._named() else copy(route, copying, streams)
        compared = compare(route, comparing, streams)
        return CopyResult(copied, compared, compared.seal)

    def _hand_over(self, seal: Seal | None) -> Seal | None:
        part = self._part()
        if part != self._to and not self._named():
            with writing(self.destination.path):
                promote(part.place.path, self.destination.path)
        return moved(seal, self.destination)

    def _forget(self) -> None:
        remove(self._bookmarks)

    @property
    def _bookmarks(self) -> Path:
        return self._folder / "bookmarks"

    @property
    def _lock(self) -> Path:
        return self._folder / "lock"

    def _part(self) -> Location:
        """Return the place that is written until the copy is whole; a device or a URL has no temporary name."""
        if self._to.kind is not PlaceKind.FILE:
            return self._to
        final = self.destination.path
        part = final.with_name(f"{PREFIX}{self._name[:12]}-{final.name}"[:255])
        return Location(Place(str(part), self.destination.format), PlaceKind.FILE)

    def _named(self) -> bool:
        """Did an earlier call name the copy, and was cut off then? Raises DestinationExists if it is another file."""
        if self._to.kind is not PlaceKind.FILE or not os.path.lexists(self.destination.path):
            return False
        with writing(self._folder):
            found = read(self._bookmarks)
        if not (found and found.whole and site_of(self._to).owned(found)):
            raise DestinationExists(path=self.destination.at)
        remove(self._part().place.path)
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the kernel frees with this process; what is left of a copy stays there.

        A context manager. Raises CopyRunning.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not self._locked(fd):
                raise CopyRunning(destination=self.destination.shown)
            try:
                yield
            finally:
                self._tidy()
        finally:
            os.close(fd)

    def _locked(self, fd: int) -> bool:
        """Is the lock ours, and its file still the folder's? A copy that just ended may have removed the file."""
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
