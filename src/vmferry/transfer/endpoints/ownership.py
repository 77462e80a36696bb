"""What each kind of destination is made and removed by, and how it proves whether what lies there is this transfer's.

A file is made by us, exclusively, and its inode is the proof. A device, a LUN or an export exists already: it
is ours while the bookmarks name it. A file on NFS by URL is made by us, but QEMU's driver can neither make it
exclusively nor remove it; so a VM's disk goes to one that its owner has made.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from vmferry import durable
from vmferry.errors import DestinationChanged, DestinationExists, DestinationUnwritable
from vmferry.qemu.img import absent
from vmferry.qemu.places import Place
from vmferry.transfer.bookmarks import Bookmarks
from vmferry.transfer.endpoints.file import writing
from vmferry.transfer.endpoints.location import Location
from vmferry.transfer.endpoints.probe import claim_of
from vmferry.transfer.endpoints.route import PlaceKind


class Site(Protocol):
    """A destination's location and its ownership. Every method raises DestinationUnwritable if the state is unknown."""

    def owned(self, found: Bookmarks) -> bool:
        """Do these bookmarks prove that the file or device there is ours?"""

    def refuse(self, found: Bookmarks | None, path: Path) -> None:
        """Raise DestinationExists or DestinationChanged if something there is not ours and must stay as it is."""

    def create(self) -> None:
        """Create the destination, if it is of a kind that transfers create. Raises DestinationExists."""

    def claim(self) -> int:
        """Return the number by which the bookmarks recognise the destination later."""

    def remove(self) -> None:
        """Remove the destination durably, if it is of a kind that transfers create; it may be gone already."""


def site_of(destination: Location) -> Site:
    """Return the site for a destination's kind."""
    place = destination.place
    if destination.kind is PlaceKind.FILE:
        return FileSite(place.path)
    return NfsSite(place) if destination.kind is PlaceKind.NFS and not place.exists else StandingSite(place)


class FileSite:
    """A local file that the transfer creates."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def owned(self, found: Bookmarks) -> bool:
        """Is the file ours, by its inode? If no inode was recorded yet, an empty file is the one about to be made."""
        there = self._status()
        if there is None or not stat.S_ISREG(there.st_mode):
            return False
        if found.claim is None:
            return found.source is not None and there.st_size == 0
        return found.claim == there.st_ino

    def refuse(self, found: Bookmarks | None, path: Path) -> None:
        if self._status() is not None:
            raise DestinationExists(path=self._path)

    def create(self) -> None:
        try:
            with writing(self._path):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except DestinationUnwritable as error:
            if isinstance(error.__cause__, FileExistsError):
                raise DestinationExists(path=self._path) from error
            raise

    def claim(self) -> int:
        with writing(self._path):
            durable.sync_folder(self._path.parent)
            return self._path.lstat().st_ino

    def remove(self) -> None:
        remove(self._path)

    def _status(self) -> os.stat_result | None:
        with writing(self._path):
            try:
                return self._path.lstat()
            except FileNotFoundError:
                return None


class StandingSite:
    """A device, a LUN or an export, which exists before the transfer and stays after it."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def owned(self, found: Bookmarks) -> bool:
        return found.claim is None or found.claim == self.claim()

    def refuse(self, found: Bookmarks | None, path: Path) -> None:
        if found is not None:
            raise DestinationChanged(path=self._place.shown, bookmarks=path)

    def create(self) -> None:
        """Do nothing: a device or an export exists already."""

    def claim(self) -> int:
        with writing(self._place.shown):
            return claim_of(self._place)

    def remove(self) -> None:
        """Do nothing: a device or an export is never removed."""


class NfsSite(StandingSite):
    """A file on NFS, by URL, that the transfer makes but cannot remove."""

    def refuse(self, found: Bookmarks | None, path: Path) -> None:
        super().refuse(found, path)
        self.create()

    def create(self) -> None:
        """Raise DestinationExists if the file exists; the first write makes it, over whatever came there meanwhile."""
        if not absent(self._place):
            raise DestinationExists(path=self._place.shown)


def remove(path: Path) -> None:
    """Remove a file durably; it may be gone already. Raises DestinationUnwritable."""
    with writing(path):
        durable.remove(path)
