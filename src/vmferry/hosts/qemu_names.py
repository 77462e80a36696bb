"""Where an image lies, as QEMU and libvirt each write it.

The URLs are those of qemu-img(1), the options those of QEMU's block driver reference, the elements those of
libvirt's domain format. A URL is written in one way only here: without the port that is the protocol's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from lxml import etree

from vmferry.model import Placed, Url, Where

PORTS = {"nbd": 10809, "iscsi": 3260}


def canonical(url: Url) -> Url:
    """The one way to write it. Raises ValueError for what is no nbd or iscsi URL."""
    scheme, host, port, name, socket = _parts(url)
    return _url(scheme, host, port, name, socket)


def qemu_name(placed: Placed) -> str:
    """A path, a URL, or a json: name where only a part of a raw volume is meant."""
    if placed.slice_bytes is None:
        return str(placed.path)
    part = {"driver": "raw", "offset": 0, "size": placed.slice_bytes, "file": _options(placed.path)}
    return "json:" + json.dumps(part)


def where_named(name: str) -> tuple[Where, int | None]:
    """What such a name means, and how much of it. Raises ValueError for what is named in another way."""
    if name.startswith("json:"):
        told = json.loads(name.removeprefix("json:"))
        if told.get("driver") != "raw" or told.get("offset"):
            return _where_of(told), None
        return _where_of(told["file"]), told.get("size")
    if "://" in name:
        return canonical(Url(name)), None
    return Path(name).absolute(), None


def network_source(url: Url) -> etree._Element:
    """The <source> of a network disk."""
    scheme, host, port, name, socket = _parts(url)
    source = etree.Element("source", protocol=scheme)
    if name:
        source.set("name", name)
    if socket is not None:
        etree.SubElement(source, "host", transport="unix", socket=socket)
    else:
        etree.SubElement(source, "host", name=host, port=str(port))
    return source


def url_of(source: etree._Element) -> Url | None:
    """The URL of a network disk's <source>; None where there is none, or it needs a secret or TLS."""
    host = source.find("host")
    protocol = source.get("protocol", "")
    if host is None or protocol not in PORTS or source.find("auth") is not None or source.get("tls") == "yes":
        return None
    name, socket = source.get("name", ""), host.get("socket")
    return _url(protocol, host.get("name", ""), int(host.get("port", PORTS[protocol])), name, socket)


def _parts(url: Url) -> tuple[str, str, int, str, str | None]:
    """(protocol, host, port, name, socket)."""
    split = urlsplit(url.url)
    scheme = split.scheme.removesuffix("+unix")
    if scheme not in PORTS:
        raise ValueError(f"{url} is neither nbd:// nor nbd+unix:// nor iscsi://")
    name = unquote(split.path.removeprefix("/"))
    if split.scheme.endswith("+unix"):
        sockets = parse_qs(split.query).get("socket", [])
        if len(sockets) != 1:
            raise ValueError(f"{url} does not name its socket: write nbd+unix:///EXPORT?socket=PATH")
        return scheme, "", 0, name, sockets[0]
    if not split.hostname or (scheme == "iscsi" and not name.rpartition("/")[2].isdigit()):
        raise ValueError(f"{url} is not complete: write nbd://HOST:PORT/EXPORT or iscsi://HOST:PORT/TARGET/LUN")
    return scheme, split.hostname, split.port or PORTS[scheme], name, None


def _url(scheme: str, host: str, port: int, name: str, socket: str | None) -> Url:
    path = quote(name, safe="/:.,-_~")
    if socket is not None:
        return Url(f"{scheme}+unix:///{path}?socket={quote(socket, safe='/')}")
    named = f"[{host}]" if ":" in host else host
    return Url(f"{scheme}://{named}{'' if port == PORTS[scheme] else f':{port}'}/{path}")


def _options(where: Where) -> dict[str, object]:
    if isinstance(where, Path):
        return {"driver": "host_device", "filename": str(where)}
    scheme, host, port, name, socket = _parts(where)
    if scheme == "iscsi":
        target, _, lun = name.rpartition("/")
        return {"driver": "iscsi", "transport": "tcp", "portal": f"{host}:{port}", "target": target, "lun": int(lun)}
    server = {"type": "inet", "host": host, "port": str(port)}
    if socket is not None:
        server = {"type": "unix", "path": socket}
    return {"driver": "nbd", "server": server, "export": name}


def _where_of(told: dict[str, Any]) -> Where:
    """From QEMU's options, nested or flat as it writes them for old ways of naming."""
    if "filename" in told:
        return Path(told["filename"])
    if told.get("driver") == "iscsi":
        host, _, port = told["portal"].rpartition(":")
        return _url("iscsi", host or port, int(port) if host else 3260, f"{told['target']}/{told.get('lun', 0)}", None)
    if told.get("driver") == "nbd":
        server = told.get("server") or {k.removeprefix("server."): v for k, v in told.items()}
        export = told.get("export", "")
        if server.get("path"):
            return _url("nbd", "", 0, export, server["path"])
        return _url("nbd", server["host"], int(server.get("port", 10809)), export, None)
    raise ValueError(f"{told} names nothing that is known here")
