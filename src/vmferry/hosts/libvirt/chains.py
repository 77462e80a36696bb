"""Reads what a VM's disks lie on: in libvirt's eyes and in QEMU's, or in a saved state and the images' headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from vmferry import durable
from vmferry.errors import ImageToolFailed
from vmferry.hosts.libvirt import domain_xml, inspect
from vmferry.hosts.libvirt.domain_xml import Element
from vmferry.model import Placed, Power
from vmferry.model.chains import DiskChain, Layer
from vmferry.qemu import img
from vmferry.qemu.names import where_named

_QUERY = json.dumps({"execute": "query-block"})
_PROTOCOLS = frozenset({"file", "host_device", "nbd", "nfs", "iscsi", "rbd", "ssh", "http", "https"})
"""QEMU's drivers for raw images without a format layer of their own, as newer libvirts open some."""
_FILTERS = frozenset(
    {"copy-on-read", "throttle", "copy-before-write", "compress", "blkdebug", "preallocate", "snapshot-access"}
)
"""QEMU's filter drivers: they pass on what lies below, and are no images."""
_JOBS = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active-commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "backup",
}


def read(domain: libvirt.virDomain) -> tuple[DiskChain, ...] | None:
    """Return what the disks of a running or paused VM lie on; None for one that is off, or ends meanwhile."""
    if inspect.power(domain) is Power.OFF:
        return None
    try:
        root = domain_xml.parse(domain.XMLDesc(0))
        opened = _opened(domain)
        return tuple(_running(domain, disk, opened) for disk in domain_xml.disks(root))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID and inspect.power(domain) is Power.OFF:
            return None
        raise


def of_headers(root: Element) -> tuple[DiskChain, ...]:
    """Return the chains of disks that nobody has open: what the domain's XML names, and below it what headers name.

    A guest may be standing meanwhile, so the disks are read in parallel.
    """
    disks = list(domain_xml.disks(root))
    with ThreadPoolExecutor(max(1, len(disks))) as pool:
        return tuple(pool.map(_closed, disks))


def _closed(disk: Element) -> DiskChain:
    placed = domain_xml.placed_of(disk)
    layers = () if placed is None else layers_of(placed)
    return DiskChain(domain_xml.target_of(disk), tuple(layer.name for layer in layers), layers)


def layers_of(placed: Placed) -> tuple[Layer, ...]:
    """Return an image and all below it, as the headers say; the image alone where they cannot be read."""
    if isinstance(placed.path, Path) and not durable.there(placed.path):
        return (Layer(str(placed.path), placed.format, 0),)
    try:
        return tuple(img.layers(placed))
    except ImageToolFailed:
        return (Layer(str(placed.path), placed.format, 0),)


def _running(domain: libvirt.virDomain, disk: Element, opened: Mapping[str, Mapping[str, Any]]) -> DiskChain:
    target, mirror = domain_xml.target_of(disk), disk.find("mirror")
    copies_to = None if mirror is None else domain_xml.source_where(mirror)
    return DiskChain(
        target=target,
        named=tuple(_named(disk)),
        layers=tuple(_layers(opened.get(_alias(disk), {}))),
        mirror="" if mirror is None else str(copies_to or "somewhere"),
        block_job=_block_job(domain, disk, target),
    )


def _named(disk: Element) -> Iterator[str]:
    at: Element | None = disk
    while at is not None and at.find("source") is not None:
        where = domain_xml.source_where(at)
        yield "an image of another kind" if where is None else str(where)
        at = at.find("backingStore")


def _alias(disk: Element) -> str:
    alias = disk.find("alias")
    return "" if alias is None else alias.get("name", "")


def _block_job(domain: libvirt.virDomain, disk: Element, target: str) -> str:
    if disk.find("source") is None:
        return ""
    info = domain.blockJobInfo(target, 0)
    return _JOBS.get(info["type"], "") if info else ""


def _opened(domain: libvirt.virDomain) -> Mapping[str, Mapping[str, Any]]:
    """Return what QEMU has open, by the names of its devices, with a monitor query that changes nothing."""
    nodes = json.loads(libvirt_qemu.qemuMonitorCommand(domain, _QUERY, 0))["return"]
    opened = {}
    for device in nodes:
        image = device.get("inserted", {}).get("image", {})
        for part in device.get("qdev", "").split("/"):
            opened[part] = image
        opened[device.get("device", "").removeprefix("drive-")] = image
    return opened


def _layers(image: Mapping[str, Any]) -> Iterator[Layer]:
    at: Mapping[str, Any] | None = image
    while at:
        format_ = str(at["format"])
        if format_ in _FILTERS:
            at = at.get("backing-image")
            continue
        yield Layer(
            name=_name(str(at["filename"])),
            format="raw" if format_ in _PROTOCOLS else format_,
            virtual_bytes=int(at["virtual-size"]),
            snapshots=tuple(str(each["name"]) for each in at.get("snapshots", ())),
        )
        at = at.get("backing-image")


def _name(filename: str) -> str:
    """Return the place that QEMU's name for an image means, or the name itself where that cannot be told.

    QEMU writes JSON where an image was opened with options that no plain name tells, of the layers around it too. It
    cuts such a name after 4095 bytes, which some twenty layers fill: what it means cannot be told then.
    """
    try:
        if filename.startswith("json:"):
            options = json.loads(filename.removeprefix("json:"))
            while isinstance(options.get("file"), dict):
                options = options["file"]
            filename = f"json:{json.dumps(options)}"
        return str(where_named(filename)[0])
    except (ValueError, KeyError, AttributeError):
        return filename
