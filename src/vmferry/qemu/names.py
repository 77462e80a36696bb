"""Where an image lies, as QEMU and libvirt each write it.

The options are those of QEMU's block driver reference, the elements those of libvirt's domain format.
"""

from __future__ import annotations

import grp
import json
import pwd
from pathlib import Path
from typing import Any

from lxml import etree

from vmferry.model import Placed, Url, Where
from vmferry.qemu.urls import PORTS, NfsIdentity, VolumeUrl, parsed, scheme_of


def canonical(url: Url) -> Url:
    """Return the URL written in the one way used here. Raises ValueError for what is no nbd, iscsi or nfs URL."""
    return Url(str(_parsed(url)))


def identity_of(url: Url) -> NfsIdentity | None:
    """Return the user and group that the URL of a file on NFS names; None if it names none. Raises ValueError."""
    return _parsed(url).identity


def whoever_asks(url: Url) -> Url:
    """Return an NFS URL without user and group, to compare places; any other URL means the same, or stays as it is."""
    try:
        return Url(str(_parsed(url)._replace(identity=None)))
    except ValueError:
        return url


def qemu_name(placed: Placed) -> str:
    """Return QEMU's name for an image: a path, a URL, or a json: name for a part of a raw volume and for NFS.

    In the URL of a backing image libvirt 9.0 loses the first slash of an NFS export ("Mount failed with error
    MNT3ERR_ACCES"), and a json: name without user and group it refuses.
    """
    if placed.slice_bytes is not None:
        part = {"driver": "raw", "offset": 0, "size": placed.slice_bytes, "file": _options(placed.path)}
        return "json:" + json.dumps(part)
    if isinstance(placed.path, Url) and placed.path.url.startswith("nfs:"):
        return "json:" + json.dumps({"file": _options(placed.path)})
    return str(placed.path)


def where_named(name: str) -> tuple[Where, int | None]:
    """Return the place that a name of QEMU's means, and how many bytes of it (None for all).

    Raises ValueError for what is named in another way.
    """
    if name.startswith("json:"):
        options = _unwrapped(json.loads(name.removeprefix("json:")))
        if options.get("driver") != "raw" or options.get("offset"):
            return _where_of(options), None
        return _where_of(options["file"]), options.get("size")
    if "://" in name:
        return canonical(Url(name)), None
    return Path(name).absolute(), None


def network_source(url: Url) -> etree._Element:
    """Return libvirt's <source> element for a network disk with this URL."""
    parts = _parsed(url)
    source = etree.Element("source", protocol=parts.protocol)
    if parts.protocol == "nfs":
        source.set("name", f"/{parts.name}")
        etree.SubElement(source, "host", name=parts.host)
        if parts.identity:
            etree.SubElement(source, "identity", user=f"+{parts.identity.uid}", group=f"+{parts.identity.gid}")
        return source
    if parts.name:
        source.set("name", parts.name)
    if parts.socket is not None:
        etree.SubElement(source, "host", transport="unix", socket=parts.socket)
    else:
        etree.SubElement(source, "host", name=parts.host, port=str(parts.port))
    return source


def url_of(source: etree._Element) -> Url | None:
    """Return the URL of a network disk's <source>; None where there is none, or it needs a secret or TLS."""
    host = source.find("host")
    protocol = source.get("protocol", "")
    if host is None or protocol not in PORTS or source.find("auth") is not None or source.get("tls") == "yes":
        return None
    name = source.get("name", "")
    if protocol == "nfs":
        name = name.removeprefix("/")
    port = int(host.get("port", PORTS[protocol]))
    return Url(str(VolumeUrl(protocol, host.get("name", ""), port, name, host.get("socket"), _identity_in(source))))


def _identity_in(source: etree._Element) -> NfsIdentity | None:
    """Return the user and group of a <source>: libvirt takes names, and numbers with a plus before them."""
    identity = source.find("identity")
    if identity is None:
        return None
    user, group = identity.get("user", ""), identity.get("group", "")
    try:
        uid = int(user) if user.lstrip("+").isdigit() else pwd.getpwnam(user).pw_uid
        gid = int(group) if group.lstrip("+").isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        return None
    return NfsIdentity(uid, gid)


def _parsed(url: Url) -> VolumeUrl:
    """Return what the URL of a VM's disk says. Raises ValueError, also for TLS and options of NFS but uid and gid."""
    try:
        volume = parsed(url.url)
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from error
    if scheme_of(url.url) in ("nbds", "nbds+unix"):
        raise ValueError(f"{url} asks for TLS, which libvirt takes from the disk's definition: write nbd://")
    if volume.others:
        raise ValueError(f"{url} is not what QEMU takes: write nfs://HOST/EXPORT/FILE?uid=NUMBER&gid=NUMBER")
    return volume


def _options(where: Where) -> dict[str, object]:
    if isinstance(where, Path):
        return {"driver": "host_device", "filename": str(where)}
    parts = _parsed(where)
    if parts.protocol == "iscsi":
        target, _, lun = parts.name.rpartition("/")
        portal = f"{parts.host}:{parts.port}"
        return {"driver": "iscsi", "transport": "tcp", "portal": portal, "target": target, "lun": int(lun)}
    if parts.protocol == "nfs":
        server = {"type": "inet", "host": parts.host}
        who = {"user": parts.identity.uid, "group": parts.identity.gid} if parts.identity else {}
        return {"driver": "nfs", "server": server, "path": f"/{parts.name}", **who}
    server = {"type": "inet", "host": parts.host, "port": str(parts.port)}
    if parts.socket is not None:
        server = {"type": "unix", "path": parts.socket}
    return {"driver": "nbd", "server": server, "export": parts.name}


def _unwrapped(options: dict[str, Any]) -> dict[str, Any]:
    """Strip the raw layers that libvirt puts around what it names, slices too, and does not always declare."""
    while options.keys() <= {"driver", "file"} and "file" in options and options.get("driver", "raw") == "raw":
        options = options["file"]
    return options


def _where_of(told: dict[str, Any]) -> Where:
    """Return the place that QEMU's options name, nested or flat as it writes them for old ways of naming."""
    if "filename" in told:
        return Path(told["filename"])
    server = told.get("server") or {k.removeprefix("server."): v for k, v in told.items()}
    if told.get("driver") == "iscsi":
        host, _, port = told["portal"].rpartition(":")
        name = f"{told['target']}/{told.get('lun', 0)}"
        return Url(str(VolumeUrl("iscsi", host or port, int(port) if host else PORTS["iscsi"], name)))
    if told.get("driver") == "nfs":
        who = NfsIdentity(told["user"], told["group"]) if "user" in told and "group" in told else None
        return Url(str(VolumeUrl("nfs", server["host"], PORTS["nfs"], told["path"].removeprefix("/"), None, who)))
    if told.get("driver") == "nbd":
        export = told.get("export", "")
        if server.get("path"):
            return Url(str(VolumeUrl("nbd", "", 0, export, server["path"])))
        return Url(str(VolumeUrl("nbd", server["host"], int(server.get("port", PORTS["nbd"])), export)))
    raise ValueError(f"{told} names nothing that is known here")
