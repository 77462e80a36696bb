"""libvirt's checkpoints of a VM: forgotten, known again, and dropped with their bitmaps."""

from __future__ import annotations

from collections.abc import Iterator

import libvirt

from vmferry.hosts.libvirt import domain_xml, inspect
from vmferry.model import Definition, Placed, Power
from vmferry.qemu import img

_TOPOLOGICAL = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
_METADATA = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY


def forget(domain: libvirt.virDomain) -> None:
    """Make libvirt forget the VM's checkpoints, children before their parents; the bitmaps stay."""
    for checkpoint in reversed(domain.listAllCheckpoints(_TOPOLOGICAL)):
        checkpoint.delete(_METADATA)


def recall(domain: libvirt.virDomain, definition: Definition) -> None:
    """Make libvirt know again those of the definition's checkpoints that it does not know, parents first."""
    known = {checkpoint.getName() for checkpoint in domain.listAllCheckpoints(0)}
    for checkpoint in definition.checkpoints:
        if checkpoint.name not in known:
            domain.checkpointCreateXML(checkpoint.xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)


def drop(domain: libvirt.virDomain, definition: Definition) -> None:
    """Remove the VM's checkpoints, and the bitmaps of those in the definition.

    libvirt removes bitmaps of a running VM only, qemu-img those of one that is off. A bitmap that was left would be
    taken for that of a checkpoint of the same name that somebody makes later.
    """
    forget(domain)
    if inspect.power(domain) is Power.OFF:
        names = {checkpoint.name for checkpoint in definition.checkpoints}
        for placed in _active(domain):
            for name in names & set(img.bitmaps(placed)):
                img.remove_bitmap(placed, name)
        return
    for checkpoint in reversed(definition.checkpoints):
        for xml in _disk_by_disk(checkpoint.xml):
            _drop(domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE))


def _drop(checkpoint: libvirt.virDomainCheckpoint) -> None:
    """Delete a checkpoint with its bitmap, if there is one: a disk that was copied by content may have none."""
    try:
        checkpoint.delete(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:
            raise
        checkpoint.delete(_METADATA)


def _disk_by_disk(xml: str) -> Iterator[str]:
    """Yield a checkpoint's XML once per covered disk, without a parent: libvirt removes all its bitmaps or none."""
    for number in range(len(_covered(domain_xml.parse(xml)))):
        root = domain_xml.parse(xml)
        for parent in root.findall("parent"):
            root.remove(parent)
        for other, disk in enumerate(_covered(root)):
            if other != number:
                disk.set("checkpoint", "no")
                if "bitmap" in disk.attrib:
                    del disk.attrib["bitmap"]
        yield domain_xml.text(root)


def _covered(root: domain_xml.Element) -> list[domain_xml.Element]:
    return root.findall("./disks/disk[@checkpoint='bitmap']")


def _active(domain: libvirt.virDomain) -> list[Placed]:
    root = domain_xml.parse(domain.XMLDesc(0))
    found = [domain_xml.placed_of(disk) for disk in domain_xml.disks(root) if disk.find("readonly") is None]
    return [placed for placed in found if placed is not None and placed.format == "qcow2"]
