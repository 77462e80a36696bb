"""Every file that a VM's XML names, by whatever element: what is not known here counts too, if it looks like a path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmferry.hosts.libvirt import domain_xml
from vmferry.hosts.libvirt.domain_xml import Element
from vmferry.model import Where
from vmferry.qemu.names import url_of

ResolveVolume = Callable[[str, str], Path | None]
"""Pool and volume to the path that libvirt has for it; None when it cannot tell."""
_IN_OPTIONS = re.compile(r"(?:^|[=,:\s\"'])(/[^,\"'\s]+)")
_ROLES = {
    "nvram": "UEFI variables",
    "loader": "firmware",
    "kernel": "kernel",
    "initrd": "initrd",
    "dtb": "device tree",
    "acpi": "ACPI table",
    "tpm": "TPM",
    "filesystem": "shared folder",
    "memory": "memory",
    "pstore": "pstore",
}
_BELOW = {"backingStore": "below ", "mirror": "mirror of ", "dataStore": "data of ", "disk": ""}


class Naming(NamedTuple):
    """One file that a VM's XML names, and how."""

    where: Where
    how: str
    disk: str = ""
    format: str | None = None
    """The format that the XML declares; None where it declares none."""
    folder: bool = False
    """It is a folder of the host that the guest is given, with all in it."""
    guessed: bool = False
    """It is a volume that libvirt cannot resolve now: only the file's name is known."""


def namings(root: Element, resolve: ResolveVolume) -> Iterator[Naming]:
    """Yield every file that the XML of a domain, a snapshot or a checkpoint names."""
    for element in root.iter():
        if isinstance(element.tag, str):
            yield from _of(element, resolve)


def _of(element: Element, resolve: ResolveVolume) -> Iterator[Naming]:
    if element.tag in ("{http://libvirt.org/schemas/domain/qemu/1.0}arg", "cmdline"):
        for value in (*element.attrib.values(), element.text or ""):
            yield from (Naming(Path(path), "a command line of its own") for path in _IN_OPTIONS.findall(str(value)))
        return
    how, disk = _role(element)
    if element.tag == "source" and element.get("pool") and element.get("volume"):
        yield _of_volume(element, how, disk, resolve)
        return
    if element.tag == "source" and element.get("protocol"):
        url = url_of(element)
        yield from () if url is None else [Naming(url, how, disk, _format(element))]
    for value in (*element.attrib.values(), element.text or ""):
        path = str(value).strip()
        if path.startswith("/") and len(path) > 1 and "\0" not in path:
            shared = element.tag == "source" and how == _ROLES["filesystem"]
            yield Naming(Path(path), how, disk, _format(element), folder=shared)


def _of_volume(source: Element, how: str, disk: str, resolve: ResolveVolume) -> Naming:
    pool, volume = source.get("pool", ""), source.get("volume", "")
    path = resolve(pool, volume)
    how = f"{how}, volume {volume} of pool {pool}"
    if path is None:
        return Naming(Path(volume), f"{how}, which libvirt cannot find now", disk, guessed=True)
    return Naming(path, how, disk, _format(source))


def _format(source: Element) -> str | None:
    """Return the format declared beside a <source>, in a disk or in a part of its chain; None if none is."""
    holder = source.getparent()
    if source.tag != "source" or holder is None or holder.tag not in _BELOW:
        return None
    declared = holder.find("driver") is not None or holder.find("format") is not None
    return domain_xml.format_of(holder) if declared else None


def _role(element: Element) -> tuple[str, str]:
    """Return (the element's role in words for people, the disk's target or empty)."""
    prefix = ""
    for at in (element, *element.iterancestors()):
        tag = str(at.tag)
        if tag == "disk":
            target = domain_xml.target_of(at) or at.get("name", "")
            return f"{prefix}disk {target}".strip(), target
        if tag in _ROLES:
            return _ROLES[tag], ""
        prefix = prefix or _BELOW.get(tag, "")
    return str(element.tag).rpartition("}")[2], ""
