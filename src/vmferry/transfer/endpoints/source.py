"""The source of a copy, open, with a check that it is still the same.

What needs libnbd is imported where it is used: libnbd has no wheel, and a copy from file to file does without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from vmferry.errors import BadPlace, SourceChanged, SourceInUse
from vmferry.qemu.img import ImageInfo, Options, look
from vmferry.qemu.locks import guard_reading
from vmferry.qemu.places import AnyPlace, Place, shown
from vmferry.transfer.bookmarks import SourceIdentity
from vmferry.transfer.endpoints.adapters import MediumSource
from vmferry.transfer.endpoints.device import device_to_read
from vmferry.transfer.endpoints.file import SourceFile, reading
from vmferry.transfer.endpoints.interface import Source
from vmferry.transfer.endpoints.location import Location, Route, locate
from vmferry.transfer.endpoints.probe import device_facts, digest, file_facts
from vmferry.transfer.endpoints.route import Opening, PlaceKind, opening


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """An open source that is expected not to change."""

    source: Source
    identity: SourceIdentity
    confirm: Callable[[], None]
    """Raise SourceChanged if the source is no longer what was opened; a change behind a URL is not noticed."""
    file: SourceFile | None = None  # if its bytes are what is copied
    attributes: os.stat_result | None = None  # owner and mode, if it is a file
    options: Options = ()  # with which an image of its kind is made


@contextmanager
def opened_source(route: Route, connections: int) -> Iterator[OpenedSource]:
    """Open the source of a copy; if it grows, what is there so far. A context manager.

    Raises SourceUnreadable, SourceInUse, ExportFailed, BadPlace.
    """
    with _opened(route.source, route.reads, connections) as found:
        yield _growing(found, shown(route.source.where)) if route.transfer.grows else found


@contextmanager
def opened_alone(source: AnyPlace, connections: int) -> Iterator[OpenedSource]:
    """Open a place for its content, a bare path for its bytes. A context manager. Raises as opened_source does."""
    location = locate(source)
    with _opened(location, opening(location.end), connections) as found:
        yield found


@contextmanager
def _opened(location: Location, way: Opening, connections: int) -> Iterator[OpenedSource]:
    place = location.place
    with ExitStack() as stack:
        if way is Opening.FILE:
            yield _file(location, stack)
        elif way is Opening.DEVICE:
            yield _device(place, stack)
        elif way is Opening.NBD:
            from vmferry.transfer.endpoints.nbd import nbd_link
            from vmferry.transfer.endpoints.nbd_connect import connecting

            with reading(place.shown):
                link = stack.enter_context(nbd_link(connecting(place), connections))
            source = MediumSource(link, place.shown)
            yield OpenedSource(source, SourceIdentity(link.size, 0, 0, digest("url", place.shown)), _untold)
        else:
            yield _image(location, connections, stack)


def _file(location: Location, stack: ExitStack) -> OpenedSource:
    """Open a local file for its bytes. The caller makes sure that nobody writes to a bare path; a Place is guarded.

    Raises SourceInUse, or BadPlace if a qcow2 keeps its data in another file.
    """
    place, where = location.place, location.where
    source = stack.enter_context(SourceFile(place.path if isinstance(where, Place) else where))
    if isinstance(where, Place):
        with reading(place.at):
            if not guard_reading(source.raw.fd):
                raise SourceInUse(path=place.at)
        if place.format == "qcow2" and look(place).data_file:
            raise BadPlace(place=place.at, reason="its data lie in another file: copy it to another format or storage")
    return OpenedSource(source, source.identity, source.confirm, source, source.attributes())


def _device(place: Place, stack: ExitStack) -> OpenedSource:
    device = stack.enter_context(device_to_read(place.path))
    with reading(place.at):
        if not guard_reading(device.fd):
            raise SourceInUse(path=place.at)
        facts = device_facts(os.fstat(device.fd))
    identity = SourceIdentity(device.size, 0, 0, digest(*facts))
    return OpenedSource(MediumSource(device, place.at), identity, _untold)


def _image(location: Location, connections: int, stack: ExitStack) -> OpenedSource:
    from vmferry.transfer.endpoints.qemu_nbd import exported

    place = location.place
    link = stack.enter_context(exported(place, connections, writable=False))
    seen = look(place)
    mine = identity_of_image(place, seen)
    with reading(place.shown):
        attributes = place.path.stat() if location.kind is PlaceKind.FILE else None
    source = MediumSource(link, place.shown)
    return OpenedSource(source, mine, partial(_confirm_image, place, mine), None, attributes, seen.options)


def identity_of_image(place: Place, seen: ImageInfo) -> SourceIdentity:
    """Return an image's size with a digest of all the files that its content comes from."""
    facts = [fact for name in seen.files for fact in file_facts(name)]
    return SourceIdentity(seen.size, 0, 0, digest(place.format, place.shown, *facts))


def _confirm_image(place: Place, mine: SourceIdentity) -> None:
    if identity_of_image(place, look(place)) != mine:
        raise SourceChanged(path=shown(place))


def _growing(found: OpenedSource, name: str) -> OpenedSource:
    """Give a growing source an identity of its name only, since its size differs each time."""
    return replace(found, identity=SourceIdentity(0, 0, 0, digest("grows", name)), confirm=_untold)


def _untold() -> None:
    """Accept the source unchecked: a device and a URL have no modification time."""
