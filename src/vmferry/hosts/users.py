"""Which VMs use an image: asked before each act on a file, so that it must cost little with many VMs.

Of a VM that runs libvirt tells all images of a disk. Of one that is off, and where libvirt tells no end of the chain,
the headers are read, by qemu-img; what was read is kept while none of the files has changed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import libvirt

from vmferry.errors import ImageToolFailed
from vmferry.hosts import domain_xml, images
from vmferry.hosts.domain_xml import Element
from vmferry.hosts.qemu_names import whoever_asks
from vmferry.model import Placed, Url, Where

MOST = 4096
SETTLED_NS = 2_000_000_000
"""A file that has just been written may be written again without looking newer."""

Facts = tuple[int, int, int, int]


def users(conn: libvirt.virConnect, wanted: Where) -> tuple[str, ...]:
    """UUIDs of the VMs in whose disks' chains it lies, by their names."""
    image = _real(wanted)
    found = []
    for domain in conn.listAllDomains():
        try:
            root = domain_xml.parse(domain.XMLDesc(0))
            told = domain.name(), domain.UUIDString()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                continue  # it went meanwhile
            raise
        if any(_real(where) == image for disk in domain_xml.disks(root) for where in _chain(disk)):
            found.append(told)
    return tuple(uuid for _, uuid in sorted(found))


def _real(where: Where) -> Where:
    """The one name of an image, whatever links lead to it and whoever asks for it."""
    return whoever_asks(where) if isinstance(where, Url) else where.resolve()


def _chain(disk: Element) -> Sequence[Where]:
    """A disk's image and all below it."""
    top = domain_xml.placed_of(disk)
    if top is None:
        return ()
    told = _told(disk)
    return _read.chain(top) if told is None else told


def _told(disk: Element) -> list[Where] | None:
    """As libvirt tells; None if it does not tell where the chain ends."""
    chain: list[Where] = []
    at: Element | None = disk
    while at is not None and at.find("source") is not None:
        where = domain_xml.source_where(at)
        if where is None:
            return None
        chain.append(where)
        at = at.find("backingStore")
    return None if at is None else chain


class _Headers:
    """Chains as the images' headers tell them."""

    def __init__(self) -> None:
        self._known: OrderedDict[Placed, tuple[tuple[Facts | None, ...], tuple[Where, ...]]] = OrderedDict()
        self._lock = Lock()

    def chain(self, top: Placed) -> tuple[Where, ...]:
        if top.format == "raw" or _absent(top.path):
            return (top.path,)
        with self._lock:
            known = self._known.get(top)
        if known is not None and None not in known[0] and tuple(_facts(where) for where in known[1]) == known[0]:
            return known[1]
        before = _facts(top.path)
        try:
            chain = tuple(image.path for image in images.chain(top))
        except ImageToolFailed:
            return (top.path,)
        facts = (before, *(_facts(where) for where in chain[1:]))
        with self._lock:
            self._known[top] = facts, chain
            self._known.move_to_end(top)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        return chain


def _absent(where: Where) -> bool:
    return isinstance(where, Path) and not (where.is_file() or where.is_block_device())


def _facts(where: Where) -> Facts | None:
    """What is another when a file has changed; None where that cannot be told, as of a volume."""
    if isinstance(where, Url) or not where.is_file():
        return None
    try:
        status = where.stat()
    except OSError:
        return None
    newest_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    if time.time_ns() - newest_ns < SETTLED_NS:
        return None
    return status.st_dev, status.st_ino, status.st_size, newest_ns


_read = _Headers()
