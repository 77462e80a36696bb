"""The way that a copy takes: a pure decision from the kinds and formats of its two ends."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class PlaceKind(Enum):
    """The kind of storage that a place is."""

    FILE = "file"
    DEVICE = "device"
    NBD = "nbd"
    ISCSI = "iscsi"
    NFS = "nfs"
    JSON = "json"


class Opening(Enum):
    """How an end of a copy is opened for reading or writing."""

    FILE = "file"  # the bytes of a local file, whatever they mean
    DEVICE = "device"  # the bytes of a block device
    NBD = "nbd"  # the server that the URL names
    EXPORT = "export"  # a qemu-nbd of our own, which knows the format and the protocol


class End(NamedTuple):
    kind: PlaceKind
    format: str


def byte_for_byte(source: End, destination: End) -> bool:
    """Are both ends files of the same format? Then internal snapshots, bitmaps and the layout of clusters survive."""
    return source.kind is destination.kind is PlaceKind.FILE and source.format == destination.format


def openings(source: End, destination: End) -> tuple[Opening, Opening]:
    """Return how the source and the destination are opened."""
    if byte_for_byte(source, destination):
        return Opening.FILE, Opening.FILE
    return opening(source), opening(destination)


def opening(end: End) -> Opening:
    """Return how an end is opened for its content as a guest sees it."""
    if end.format != "raw":
        return Opening.EXPORT
    return {PlaceKind.FILE: Opening.FILE, PlaceKind.DEVICE: Opening.DEVICE, PlaceKind.NBD: Opening.NBD}.get(
        end.kind, Opening.EXPORT
    )
