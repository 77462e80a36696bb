"""What the two places of a copy are: the file system is asked once, and the answer is handed on."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from vmferry.errors import DestinationUnwritable, SourceUnreadable
from vmferry.qemu.places import AnyPlace, Place, Scheme, place_of
from vmferry.transfer.contract import Transfer
from vmferry.transfer.endpoints.file import reading
from vmferry.transfer.endpoints.route import End, Opening, PlaceKind, byte_for_byte, openings

_KINDS = {
    Scheme.NBD: PlaceKind.NBD,
    Scheme.ISCSI: PlaceKind.ISCSI,
    Scheme.NFS: PlaceKind.NFS,
    Scheme.JSON: PlaceKind.JSON,
}


@dataclass(frozen=True, slots=True)
class Location:
    """A place, and the kind of storage that it was found to be."""

    where: AnyPlace  # as it was given: of a bare path the bytes are meant
    kind: PlaceKind

    @property
    def place(self) -> Place:
        return place_of(self.where)

    @property
    def end(self) -> End:
        return End(self.kind, self.place.format)


def locate(where: AnyPlace) -> Location:
    """Look at a place; a path that does not exist counts as a file. Raises SourceUnreadable."""
    place = place_of(where)
    if place.scheme is not Scheme.PATH:
        return Location(where, _KINDS[place.scheme])
    with reading(place.at):
        try:
            device = stat.S_ISBLK(place.path.stat().st_mode)
        except FileNotFoundError:
            device = False
    return Location(where, PlaceKind.DEVICE if device else PlaceKind.FILE)


def locate_destination(where: AnyPlace) -> Location:
    """Look at a place that is to be written, as `locate` does. Raises DestinationUnwritable."""
    try:
        return locate(where)
    except SourceUnreadable as error:
        raise DestinationUnwritable(path=place_of(where).shown, reason=error.fields["reason"]) from error


@dataclass(frozen=True, slots=True)
class Route:
    """A transfer whose two places have been looked at."""

    transfer: Transfer[AnyPlace, AnyPlace]
    source: Location
    destination: Location

    @property
    def reads(self) -> Opening:
        """How the source is opened."""
        return openings(self.source.end, self.destination.end)[0]

    @property
    def writes(self) -> Opening:
        """How the destination is opened."""
        return openings(self.source.end, self.destination.end)[1]

    @property
    def byte_for_byte(self) -> bool:
        """Are the bytes of a file copied, and not the content of a disk?"""
        return byte_for_byte(self.source.end, self.destination.end)


def route_of(transfer: Transfer[AnyPlace, AnyPlace]) -> Route:
    """Look at both places of a transfer. Raises SourceUnreadable, DestinationUnwritable."""
    return Route(transfer, locate(transfer.source), locate_destination(transfer.destination))
