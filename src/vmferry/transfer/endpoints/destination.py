"""The destination of a copy, open to be written.

What needs libnbd is imported where it is used: libnbd has no wheel, and a copy from file to file does without it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from vmferry.durable import sync, sync_folder
from vmferry.errors import BadPlace, DestinationInUse, DestinationTooSmall
from vmferry.qemu import img
from vmferry.qemu.img import Options
from vmferry.qemu.locks import guard_writing
from vmferry.qemu.places import Place
from vmferry.transfer.endpoints.adapters import Medium, MediumDestination
from vmferry.transfer.endpoints.device import device_to_write
from vmferry.transfer.endpoints.file import DestinationFile, writing
from vmferry.transfer.endpoints.interface import Destination
from vmferry.transfer.endpoints.location import Location
from vmferry.transfer.endpoints.raw_file import RawFile
from vmferry.transfer.endpoints.route import Opening, PlaceKind

Settle = Callable[[os.stat_result | None], None]
WRITABLE = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class Opened:
    """An open destination, and `settle`, which finishes it: durable, with its name, owner and mode."""

    destination: Destination
    settle: Settle
    file: DestinationFile | None = None


@dataclass(frozen=True, slots=True)
class OpenedDestination:
    """A destination, not open yet, with the way in which it is opened."""

    location: Location
    way: Opening
    size: int  # of the source

    @property
    def place(self) -> Place:
        return self.location.place

    @property
    def is_made(self) -> bool:
        """Is there an image to make before it can be opened?"""
        return self.way is Opening.EXPORT and (self.place.format != "raw" or self.location.kind is PlaceKind.NFS)

    def check(self) -> None:
        """Raise BadPlace if nothing can be written in this format, or not over TLS."""
        if self.way is not Opening.FILE and self.place.format not in WRITABLE:
            raise BadPlace(place=self.place.shown, reason=f"only {' and '.join(WRITABLE)} can be written")
        if self.way is Opening.EXPORT and self.place.encrypted:
            raise BadPlace(place=self.place.shown, reason="over TLS only raw can be written")

    def make(self, data_bytes: int, options: Options) -> None:
        """Make an empty image there, durably. Raises DestinationTooSmall, DestinationFull, ImageToolFailed."""
        options = options if self.place.format == "qcow2" else ()
        standing = self.location.kind not in (PlaceKind.FILE, PlaceKind.NFS)
        with self._guard():
            if standing:
                needed = img.required(self.place, self.size, data_bytes, options)
                room = img.look(Place(self.place.at, "raw", self.place.tls)).size
                enough(self.place, room, needed)
            if self.place.format == "raw":
                img.create(self.place, 0)  # over a file on NFS that exists qemu-img keeps what was in it
            img.create(self.place, self.size, options)
        if self.location.kind is PlaceKind.FILE:
            with writing(self.place.at):
                sync(self.place.path)

    @contextmanager
    def opened(self, connections: int) -> Iterator[Opened]:
        """Open the destination for writing. A context manager.

        Raises DestinationInUse, DestinationTooSmall, DestinationUnwritable, ExportFailed.
        """
        with ExitStack() as stack:
            if self.way is Opening.FILE:
                yield self._file(stack)
                return
            medium = self._medium(connections, stack)
            enough(self.place, medium.size, self.size)
            yield Opened(MediumDestination(medium, self.place.shown, self.size), self._settled)

    def _guard(self) -> AbstractContextManager[object]:
        """Keep mounts and other tools off a device while QEMU's tools write to it; for other places do nothing."""
        return device_to_write(self.place.path) if self.location.kind is PlaceKind.DEVICE else nullcontext()

    def _file(self, stack: ExitStack) -> Opened:
        path = self.place.path
        with writing(path):
            raw = RawFile(path, os.O_RDWR | os.O_NOFOLLOW)
        file = stack.enter_context(DestinationFile(path, raw))
        file.resize(self.size)

        def settle(attributes: os.stat_result | None) -> None:
            file.take_attributes(attributes)
            with writing(path):
                sync_folder(path.parent)

        return Opened(file, settle, file)

    def _medium(self, connections: int, stack: ExitStack) -> Medium:
        if self.way is Opening.EXPORT:
            from vmferry.transfer.endpoints.qemu_nbd import exported

            stack.enter_context(self._guard())
            return stack.enter_context(exported(self.place, connections, writable=True))
        if self.way is Opening.NBD:
            from vmferry.transfer.endpoints.nbd import nbd_link
            from vmferry.transfer.endpoints.nbd_connect import connecting

            with writing(self.place.shown):
                return stack.enter_context(nbd_link(connecting(self.place), connections))
        device = stack.enter_context(device_to_write(self.place.path))
        with writing(self.place.at):
            if not guard_writing(device.fd):
                raise DestinationInUse(path=self.place.at)
        return device

    def _settled(self, attributes: os.stat_result | None) -> None:
        """Give an image in a file the source's owner and mode, where permitted, and make its name durable."""
        if self.location.kind is not PlaceKind.FILE:
            return
        path = self.place.path
        with writing(path):
            if attributes is not None:
                with suppress(PermissionError):
                    os.chown(path, attributes.st_uid, attributes.st_gid)
                path.chmod(stat.S_IMODE(attributes.st_mode))
            sync(path)
            sync_folder(path.parent)


def enough(place: Place, size: int, needed: int) -> None:
    """Raise DestinationTooSmall if a place of `size` bytes has less than the needed bytes."""
    if size < needed:
        raise DestinationTooSmall(path=place.shown, size=size, needed=needed)
