"""AnyPlace a disk can lie: a local file, a block device, or a URL as qemu-img takes it; and in which format.

A place is only words here: nothing is opened or looked up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from vmferry.errors import BadPlace
from vmferry.qemu.urls import PROTOCOLS, parsed, scheme_of

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vpc")
_OLD_NBD = re.compile(r"nbd:(?!//)")
_PASSWORD = re.compile(r"(?<=://)([^/@%:]*)[%:][^/@]*@")


class Scheme(Enum):
    """The kind of a place, as its first letters say."""

    PATH = "path"  # a file or a block device: which one, only a look can tell
    NBD = "nbd"
    ISCSI = "iscsi"
    NFS = "nfs"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Place:
    """AnyPlace a disk lies and in which format; the format is said, never probed (decision 0004).

    `tls` is a folder as QEMU's tls-creds take it: ca-cert.pem with client-cert.pem and client-key.pem, or
    keys.psk. `exists` says of a file on NFS by URL that it is there before and after the copy, as devices, LUNs and
    exports always are: what it holds is overwritten. `through`: the ticket of a tunnel; the place is then one end of
    that tunnel, and the side that copies needs its other end. Raises BadPlace if the words make no sense.
    """

    at: str
    format: str = "raw"
    tls: Path | None = None
    exists: bool = False
    known_as: str = ""
    through: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BadPlace(place=self.shown, reason=f"{self.format} is no format known here: {', '.join(FORMATS)}")
        reason = _wrong(self.at)
        if reason is not None:
            raise BadPlace(place=self.shown, reason=reason)

    @property
    def scheme(self) -> Scheme:
        if self.at.startswith("json:"):
            return Scheme.JSON
        scheme = scheme_of(self.at)
        return Scheme(PROTOCOLS[scheme]) if scheme else Scheme.PATH

    @property
    def path(self) -> Path:
        """The path of a file or device."""
        return Path(self.at)

    @property
    def encrypted(self) -> bool:
        """Does the URL ask for TLS?"""
        return self.at.lower().startswith("nbds")

    @property
    def shown(self) -> str:
        """The place as it is shown to people and recorded: without a password."""
        return self.known_as or _PASSWORD.sub(r"\1@", self.at)


AnyPlace = Path | Place


def place_of(where: AnyPlace) -> Place:
    """Return where a disk lies as a Place; a bare path is a raw file."""
    return where if isinstance(where, Place) else Place(str(where.absolute()))


def shown(where: AnyPlace) -> str:
    """Return how errors name where a disk lies: without a password."""
    return where.shown if isinstance(where, Place) else str(where)


def _wrong(at: str) -> str | None:
    """Return what is wrong with the words of a place and what to write instead; None if nothing is."""
    if not at or "\0" in at:
        return "it is empty: name a file, a device or a URL"
    if _OLD_NBD.match(at):
        return "write it as nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH"
    if scheme_of(at) is None:
        return None
    try:
        parsed(at)
    except ValueError as error:
        return str(error)
    return None
