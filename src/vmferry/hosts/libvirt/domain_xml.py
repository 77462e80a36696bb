"""Reads and rewrites libvirt's domain XML; text goes in and out, elements stay in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lxml import etree

from vmferry.errors import BadXml
from vmferry.model import Placed, Url, Where
from vmferry.qemu.names import network_source, url_of

Element = etree._Element

# Domain XML also comes from other hosts: none of it reaches for files or the network, or grows when it is read.
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, remove_blank_text=False)

_SOURCE_ATTRIBUTE = {"file": "file", "block": "dev", "dir": "dir"}


def parse(xml: str) -> Element:
    """Parse XML. Raises BadXml for no XML, and for what libvirt never writes: a document type, and so any entity."""
    try:
        root = etree.fromstring(xml.encode(), _PARSER)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as error:
        raise BadXml(reason=str(error)) from error
    if root.getroottree().docinfo.internalDTD is not None or next(root.iter(etree.Entity), None) is not None:
        raise BadXml(reason="it declares a document type or uses entities, which libvirt does not")
    return root


def text(root: Element) -> str:
    return etree.tostring(root, encoding="unicode")


def disks(root: Element) -> Iterator[Element]:
    """Yield the disk elements of a domain, or of the domain within a snapshot."""
    yield from root.iterfind("./devices/disk")


def target_of(disk: Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def source_where(element: Element) -> Where | None:
    """Return where a disk's, mirror's or backing store's image lies; None when it has none of a kind known here."""
    source = element.find("source")
    if source is None:
        return None
    kind = element.get("type", "file")
    if kind == "network":
        return url_of(source)
    path = source.get(_SOURCE_ATTRIBUTE.get(kind, "file"))
    return Path(path) if path else None


def slice_bytes_of(element: Element) -> int | None:
    """Return how many bytes of a raw volume the guest's disk is; None for all of it."""
    part = element.find("source/slices/slice[@type='storage']")
    return None if part is None else int(part.get("size", 0))


def placed_of(element: Element) -> Placed | None:
    where = source_where(element)
    return None if where is None else Placed(where, format_of(element), slice_bytes_of(element))


def index_of(disk: Element, base: Where) -> str | None:
    """Return libvirt's name for an image below the active one, as vda[3]; None when it is not there."""
    at: Element | None = disk.find("backingStore")
    while at is not None:
        if source_where(at) == base and at.get("index"):
            return f"{target_of(disk)}[{at.get('index')}]"
        at = at.find("backingStore")
    return None


def format_of(element: Element) -> str:
    driver = element.find("driver")
    if driver is not None and driver.get("type"):
        return driver.get("type", "raw")
    format_ = element.find("format")
    return "raw" if format_ is None else format_.get("type", "raw")


def place(disk: Element, placed: Placed) -> None:
    """Make a disk element use this image; its chain is read from the image's header by libvirt."""
    source = disk.find("source")
    if source is None:
        source = etree.SubElement(disk, "source")
    _aim(source, placed)
    disk.set("type", _kind(placed.path))
    driver = disk.find("driver")
    if driver is None:
        driver = etree.SubElement(disk, "driver", name="qemu")
    driver.set("type", placed.format)
    forget_below(disk)


def forget_below(disk: Element) -> None:
    """Remove a disk's backing chain and mirror from its XML, so that libvirt reads the chain from the headers."""
    for stale in ("backingStore", "mirror"):
        for element in disk.findall(stale):
            disk.remove(element)


def _kind(where: Where) -> str:
    if isinstance(where, Url):
        return "network"
    return "block" if where.is_block_device() else "file"


def _aim(source: Element, placed: Placed) -> None:
    """Make a source element name this image; encryption and the like stay."""
    for attribute in ("file", "dev", "dir", "index", "protocol", "name", "query", "tls"):
        if attribute in source.attrib:
            del source.attrib[attribute]
    for name in ("host", "slices", "initiator", "identity"):
        for element in source.findall(name):
            source.remove(element)
    if isinstance(placed.path, Url):
        aimed = network_source(placed.path)
        source.attrib.update(aimed.attrib)
        source.extend(list(aimed))
    else:
        source.set(_SOURCE_ATTRIBUTE[_kind(placed.path)], str(placed.path))
    if placed.slice_bytes is not None:
        slices = etree.SubElement(source, "slices")
        etree.SubElement(slices, "slice", type="storage", offset="0", size=str(placed.slice_bytes))


def replace_places(root: Element, images: Mapping[str, Placed], files: Mapping[Path, Path]) -> bool:
    """Rewrite disks by target and other files by path. Returns whether anything changed."""
    before = etree.tostring(root)
    for disk in disks(root):
        placed = images.get(target_of(disk))
        if placed is not None and placed_of(disk) != placed:
            place(disk, placed)
    nvram = root.find("./os/nvram")
    if nvram is not None:
        _move_nvram(nvram, files)
    return etree.tostring(root) != before


def of_others(root: Element, images: Mapping[str, Placed], sources: Mapping[str, Sequence[Where]]) -> list[str]:
    """Return which of these disks name an image that is none of their sources: a person has put it there since."""
    return [
        target
        for disk in disks(root)
        if (target := target_of(disk)) in images
        and source_where(disk) not in (images[target].path, *sources.get(target, ()))
    ]


def change_media(root: Element, media: Mapping[str, Placed | None]) -> None:
    """Put another disc into these drives, or none."""
    for disk in disks(root):
        target = target_of(disk)
        if target in media and (placed := media[target]) is not None:
            place(disk, placed)
        elif target in media:
            for name in ("source", "backingStore"):
                for element in disk.findall(name):
                    disk.remove(element)


def _move_nvram(nvram: Element, files: Mapping[Path, Path]) -> None:
    if nvram.text and Path(nvram.text) in files:
        nvram.text = str(files[Path(nvram.text)])
    source = nvram.find("source")
    if source is not None and Path(source.get("file", "")) in files:
        source.set("file", str(files[Path(source.get("file", ""))]))


def replace_paths(root: Element, paths: Mapping[Path, Path]) -> bool:
    """Rewrite every source path, wherever it stands (a snapshot's disks, its domains, their chains)."""
    before = etree.tostring(root)
    for element in root.iter("source", "memory"):
        for attribute in ("file", "dev"):
            value = element.get(attribute)
            if value and Path(value) in paths:
                element.set(attribute, str(paths[Path(value)]))
    for nvram in root.iter("nvram"):
        _move_nvram(nvram, paths)
    return etree.tostring(root) != before


def snapshot_xml(disk_targets: list[str], overlays: Mapping[str, Path], memory: Path | None) -> str:
    """Return the XML of a snapshot of just these disks, or of the memory alone; other disks are named and left out."""
    root = etree.Element("domainsnapshot")
    if memory is None:
        etree.SubElement(root, "memory", snapshot="no")
    else:
        etree.SubElement(root, "memory", snapshot="external", file=str(memory))
    listed = etree.SubElement(root, "disks")
    for target in disk_targets:
        overlay = overlays.get(target)
        if overlay is None:
            etree.SubElement(listed, "disk", name=target, snapshot="no")
            continue
        disk = etree.SubElement(listed, "disk", name=target, snapshot="external", type="file")
        etree.SubElement(disk, "driver", type="qcow2")
        etree.SubElement(disk, "source", file=str(overlay))
    return text(root)


def mirror_xml(destination: Placed) -> str:
    root = etree.Element("disk")
    place(root, destination)
    return text(root)
