"""URLs of volumes, as qemu-img(1) takes them: how they are read, checked and written."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

PORTS = {"nbd": 10809, "iscsi": 3260, "nfs": 2049}
"""By protocol: its own port, which is left out of a URL."""
PROTOCOLS = {
    "nbd": "nbd",
    "nbds": "nbd",
    "nbd+unix": "nbd",
    "nbds+unix": "nbd",
    "iscsi": "iscsi",
    "nfs": "nfs",
}
"""By a URL's scheme: the protocol."""
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE | re.ASCII)
_ISCSI_PATH = re.compile(r"/[^/]+/[0-9]+")


class NfsIdentity(NamedTuple):
    """The user and group, by number, in whose name an NFS server is asked: it believes its clients."""

    uid: int
    gid: int


class VolumeUrl(NamedTuple):
    """What the URL of a volume says."""

    protocol: str
    host: str
    port: int
    name: str
    """Export, TARGET/LUN, or EXPORT/FILE."""
    socket: str | None = None
    identity: NfsIdentity | None = None
    others: tuple[str, ...] = ()
    """Names of further options of an NFS URL."""

    def __str__(self) -> str:
        """Return the URL in the one way in which it is written here: without the protocol's own port."""
        path = quote(self.name, safe="/:.,-_~")
        if self.socket is not None:
            return f"{self.protocol}+unix:///{path}?socket={quote(self.socket, safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.protocol] else f":{self.port}"
        who = f"?uid={self.identity.uid}&gid={self.identity.gid}" if self.identity else ""
        return f"{self.protocol}://{host}{port}/{path}{who}"


def scheme_of(text: str) -> str | None:
    """Return the scheme that a text begins with, in small letters; None of what is no URL."""
    found = _URL.match(text)
    return found[1].lower() if found else None


def parsed(text: str) -> VolumeUrl:
    """Return what a URL says. Raises ValueError with what is wrong with it and what to write instead."""
    scheme = scheme_of(text) or ""
    if scheme not in PROTOCOLS:
        raise ValueError(
            f"{scheme or text} is no protocol known here: {', '.join(PROTOCOLS)}; ./{text} would be a file"
        )
    try:
        split = urlsplit(text)
        port = split.port
    except ValueError as error:
        raise ValueError(f"{error}: write it as {scheme}://HOST:PORT/NAME") from error
    if port == 0:
        raise ValueError("port 0 cannot be reached")
    protocol, name = PROTOCOLS[scheme], unquote(split.path.removeprefix("/"))
    if scheme.endswith("+unix"):
        sockets = parse_qs(split.query).get("socket", [])
        if len(sockets) != 1:
            raise ValueError(f"name its socket: {scheme}:///EXPORT?socket=PATH")
        return VolumeUrl(protocol, "", 0, name, sockets[0])
    if not split.hostname:
        raise ValueError(f"it names no host: write it as {scheme}://HOST/NAME")
    if protocol == "iscsi" and not _ISCSI_PATH.fullmatch(split.path):
        raise ValueError("write it as iscsi://HOST:PORT/TARGET/LUN, the LUN as a number")
    if protocol == "nfs":
        return _nfs(split, split.hostname, name)
    return VolumeUrl(protocol, split.hostname, port or PORTS[protocol], name)


def _nfs(split: SplitResult, host: str, name: str) -> VolumeUrl:
    if not name.rpartition("/")[2]:
        raise ValueError("it names no file: write it as nfs://HOST/EXPORT/FILE")
    if split.port:
        raise ValueError("QEMU takes no port for NFS: write it as nfs://HOST/EXPORT/FILE")
    options = parse_qs(split.query)
    uid, gid = options.get("uid", [""])[0], options.get("gid", [""])[0]
    if not (uid.isdecimal() and gid.isdecimal()):
        return VolumeUrl("nfs", host, PORTS["nfs"], name, None, None, tuple(options))
    others = tuple(option for option in options if option not in ("uid", "gid"))
    return VolumeUrl("nfs", host, PORTS["nfs"], name, None, NfsIdentity(int(uid), int(gid)), others)
