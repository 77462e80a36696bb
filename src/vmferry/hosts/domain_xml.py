"""Reads and rewrites libvirt's domain XML; text goes in and out, elements stay in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lxml import etree

from vmferry.model import Placed

Element = etree._Element

# libvirt's XML is trusted, but there is no reason to let any XML reach for files or the network.
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, remove_blank_text=False)

_SOURCE_ATTRIBUTE = {"file": "file", "block": "dev", "dir": "dir"}


def parse(xml: str) -> Element:
    return etree.fromstring(xml.encode(), _PARSER)


def text(root: Element) -> str:
    return etree.tostring(root, encoding="unicode")


def disks(root: Element) -> Iterator[Element]:
    """The disk elements of a domain, or of the domain within a snapshot."""
    yield from root.iterfind("./devices/disk")


def target_of(disk: Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def source_path(element: Element) -> Path | None:
    """The local path of a disk's, mirror's or backing store's source; None when it has none."""
    source = element.find("source")
    if source is None:
        return None
    attribute = _SOURCE_ATTRIBUTE.get(element.get("type", "file"), "file")
    path = source.get(attribute)
    return Path(path) if path else None


def format_of(element: Element) -> str:
    driver = element.find("driver")
    if driver is not None and driver.get("type"):
        return driver.get("type", "raw")
    format_ = element.find("format")
    return "raw" if format_ is None else format_.get("type", "raw")


def chain_of(disk: Element) -> list[Path]:
    """The paths of the disk's chain as the XML tells it, active image first."""
    chain = []
    at: Element | None = disk
    while at is not None:
        path = source_path(at)
        if path is not None:
            chain.append(path)
        at = at.find("backingStore")
    return chain


def place(disk: Element, placed: Placed) -> None:
    """Make a disk element use this image; its chain is read from the image's header by libvirt."""
    disk.set("type", "file")
    source = disk.find("source")
    if source is None:
        source = etree.SubElement(disk, "source")
    for attribute in ("file", "dev", "dir", "index", "startupPolicy"):
        if attribute in source.attrib and attribute != "startupPolicy":
            del source.attrib[attribute]
    source.set("file", str(placed.path))
    driver = disk.find("driver")
    if driver is None:
        driver = etree.SubElement(disk, "driver", name="qemu")
    driver.set("type", placed.format)
    for stale in ("backingStore", "mirror"):
        for element in disk.findall(stale):
            disk.remove(element)


def replace_places(root: Element, images: Mapping[str, Placed], files: Mapping[Path, Path]) -> bool:
    """Rewrite disks by target and other files by path. Returns whether anything changed."""
    before = etree.tostring(root)
    for disk in disks(root):
        placed = images.get(target_of(disk))
        if placed is not None and (source_path(disk), format_of(disk)) != placed:
            place(disk, placed)
    nvram = root.find("./os/nvram")
    if nvram is not None:
        _move_nvram(nvram, files)
    return etree.tostring(root) != before


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
    """A snapshot of just these disks, or of the memory alone; every other disk is named and left out."""
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


def mirror_xml(destination: Path) -> str:
    root = etree.Element("disk", type="file")
    etree.SubElement(root, "source", file=str(destination))
    etree.SubElement(root, "driver", type="qcow2")
    return text(root)
