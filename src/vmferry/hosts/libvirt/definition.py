"""What libvirt has written down about a VM: read, carried to another host, written down again."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import libvirt
from lxml import etree

from vmferry.errors import VmExists
from vmferry.hosts.libvirt import checkpoints, domain_xml, inspect, tpm
from vmferry.model import Changes, Definition, Placed, Power, Where, WrittenSnapshot

MARK = "urn:vmferry:placeholder"
NOWHERE = Path("/nonexistent")
"""The folder of a placeholder's disks, which does not exist: libvirt refuses to start it."""
_SECURE_OFF = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
_TOPOLOGICAL = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL
_FORGET = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
_MARKED = f"./metadata/{{{MARK}}}job"
"""What a placeholder has and nothing else."""
_UNDEFINE = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM


def read(domain: libvirt.virDomain) -> Definition:
    flags = _SECURE_OFF if domain.isPersistent() else libvirt.VIR_DOMAIN_XML_SECURE
    return Definition(
        uuid=domain.UUIDString(),
        xml=domain.XMLDesc(flags),
        snapshots=tuple(
            WrittenSnapshot(each.getName(), each.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE), each.isCurrent())
            for each in domain.listAllSnapshots(_TOPOLOGICAL)
        ),
        checkpoints=tuple(
            WrittenSnapshot(each.getName(), each.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SECURE))
            for each in domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
        ),
        autostart=bool(domain.isPersistent() and domain.autostart()),
        tpm=tpm.read(domain.UUIDString()),
    )


def forget(domain: libvirt.virDomain) -> None:
    """Drop a VM's definition, snapshots and checkpoints, and nothing else; one that runs goes on without them."""
    _forget_snapshots(domain)
    if domain.isPersistent():
        domain.undefineFlags(_UNDEFINE)


def _forget_snapshots(domain: libvirt.virDomain) -> None:
    checkpoints.forget(domain)
    for snapshot in reversed(domain.listAllSnapshots(_TOPOLOGICAL)):
        snapshot.delete(_FORGET)


def disarm(conn: libvirt.virConnect, domain: libvirt.virDomain, job: str) -> None:
    """Replace the definition of a running VM by the job's placeholder, and forget its snapshots and checkpoints.

    To undefine it would not do: libvirt keeps what it has undefined until QEMU ends, and writes it down again when the
    migration's block jobs end; after libvirtd's next start the VM was there again, and could start.
    """
    _forget_snapshots(domain)
    xml = domain.XMLDesc(_SECURE_OFF if domain.isPersistent() else libvirt.VIR_DOMAIN_XML_SECURE)
    conn.defineXML(_placeholder(domain_xml.parse(xml), job)).setAutostart(0)


def write(conn: libvirt.virConnect, definition: Definition, changes: Changes) -> None:
    """Define a VM, running or off, with its snapshots, checkpoints and autostart; this may be repeated."""
    domain = conn.defineXML(text(definition, changes))
    for snapshot in definition.snapshots:
        root = domain_xml.parse(snapshot.xml)
        domain_xml.replace_paths(root, changes.files)
        for then in (*root.iter("domain"), *root.iter("inactiveDomain")):
            apply(then, Changes(networks=changes.networks, media=changes.media))
        _redefine(domain, root, current=snapshot.current)
    for checkpoint in definition.checkpoints:
        root = domain_xml.parse(checkpoint.xml)
        domain_xml.replace_paths(root, changes.files)
        domain.checkpointCreateXML(domain_xml.text(root), libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    domain.setAutostart(int(definition.autostart))


def point(
    domain: libvirt.virDomain,
    disks: Mapping[str, Placed],
    files: Mapping[Path, Path],
    sources: Mapping[str, Sequence[Where]],
) -> list[str]:
    """Make the definition name these disks and files, where it names one of `sources`.

    Returns the disks where it names another image. Nothing is done for a VM without a definition.
    """
    if not domain.isPersistent():
        return []
    root = domain_xml.parse(domain.XMLDesc(_SECURE_OFF))
    others = domain_xml.of_others(root, disks, sources)
    ours = {target: placed for target, placed in disks.items() if target not in others}
    if domain_xml.replace_places(root, ours, files):
        domain.connect().defineXML(domain_xml.text(root))
    return others


def rewrite_snapshots(domain: libvirt.virDomain, paths: Mapping[Path, Path]) -> None:
    """Replace paths in libvirt's metadata of the VM's snapshots by new ones."""
    for snapshot in domain.listAllSnapshots():
        root = _xml_of(snapshot)
        if domain_xml.replace_paths(root, paths):
            _redefine(domain, root, current=snapshot.isCurrent())


def unmask_snapshots(domain: libvirt.virDomain, definition: Definition) -> None:
    """Give each snapshot that somebody took while the VM was disarmed the VM's definition in place of a placeholder.

    libvirt writes the definition for the next start into a snapshot, and a revert puts that back.
    """
    for snapshot in domain.listAllSnapshots():
        root = _xml_of(snapshot)
        masked = [then for then in root.iterfind("./inactiveDomain") if then.find(_MARKED) is not None]
        for then in masked:
            ours = domain_xml.parse(definition.xml)
            ours.tag = then.tag
            root.replace(then, ours)
        if masked:
            _redefine(domain, root, current=snapshot.isCurrent())


def _xml_of(snapshot: libvirt.virDomainSnapshot) -> domain_xml.Element:
    return domain_xml.parse(snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))


def _redefine(domain: libvirt.virDomain, root: domain_xml.Element, *, current: bool) -> None:
    """Change what libvirt has written down of a snapshot, or write it down anew."""
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    if current:
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    domain.snapshotCreateXML(domain_xml.text(root), flags)


def text(definition: Definition, changes: Changes) -> str:
    """Return the XML from which to define the VM, with `changes` applied."""
    root = domain_xml.parse(definition.xml)
    apply(root, changes)
    return domain_xml.text(root)


def apply(root: domain_xml.Element, changes: Changes) -> None:
    """Make a domain's XML name the disks, files, discs and networks that the VM has at the destination."""
    domain_xml.replace_places(root, changes.disks, changes.files)
    domain_xml.change_media(root, changes.media)
    for _, element, attribute in _connections(root):
        element.set(attribute, changes.networks.get(element.get(attribute, ""), element.get(attribute, "")))


def announce(conn: libvirt.virConnect, definition: Definition, job: str, host: str) -> None:
    """Define the job's placeholder for a VM. Raises VmExists where another VM has its UUID or name."""
    root = domain_xml.parse(definition.xml)
    for known in (definition.uuid, root.findtext("name", "")):
        there = find(conn, known)
        if there is not None and marked(there) != job:
            raise VmExists(host=host, vm=there.name())
    conn.defineXML(_placeholder(root, job))


def _placeholder(root: domain_xml.Element, job: str) -> str:
    disks = {target: Placed(NOWHERE / f"vmferry-{job}" / target, "raw") for target in _targets(root)}
    domain_xml.replace_places(root, disks, {})
    for source in root.iterfind("./devices/disk/source[@startupPolicy]"):
        del source.attrib["startupPolicy"]  # "optional" would start it without its disks
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.SubElement(root, "metadata")
    mark = metadata.find(f"{{{MARK}}}job")
    if mark is None:
        mark = etree.SubElement(metadata, f"{{{MARK}}}job", nsmap={"vmferry": MARK})
    mark.set("id", job)
    return domain_xml.text(root)


def marked(domain: libvirt.virDomain) -> str:
    """Return the job whose placeholder the VM is; empty when it is none."""
    if not domain.isPersistent():
        return ""
    mark = domain_xml.parse(domain.XMLDesc(_SECURE_OFF)).find(_MARKED)
    return "" if mark is None else mark.get("id", "")


def find(conn: libvirt.virConnect, known: str) -> libvirt.virDomain | None:
    """Return the VM with that UUID or name; None if there is none.

    Raises libvirtError when libvirt does not answer: that does not say that the VM is not there.
    """
    for lookup in (conn.lookupByUUIDString, conn.lookupByName):
        try:
            return lookup(known)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                raise
    return None


def misses(conn: libvirt.virConnect, definition: Definition, networks: Mapping[str, str]) -> list[str]:
    return [name for _, name in missing_connections(conn, domain_xml.parse(definition.xml), networks)]


def _active_networks(conn: libvirt.virConnect) -> set[str]:
    """Return the names of active networks; an empty set where libvirt has no driver for them, or its daemon is down."""
    try:
        return {network.name() for network in conn.listAllNetworks() if network.isActive()}
    except libvirt.libvirtError:
        if not conn.isAlive():
            raise
        return set()


def missing_connections(
    conn: libvirt.virConnect, root: domain_xml.Element, networks: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return the networks that are not active, and bridges and devices that are not there, once mapped.

    Each as (kind, name), the name being that from before the mapping.
    """
    connections = list(_connections(root))
    present = _active_networks(conn) if any(kind == "network" for kind, _, _ in connections) else set()
    devices = {name for _, name in socket.if_nameindex()}
    found = []
    for kind, element, attribute in connections:
        name = element.get(attribute, "")
        if networks.get(name, name) not in (present if kind == "network" else devices):
            found.append((kind, name))
    return found


def off(domain: libvirt.virDomain) -> bool:
    return inspect.power(domain) is Power.OFF


def _targets(root: domain_xml.Element) -> list[str]:
    return [domain_xml.target_of(d) for d in domain_xml.disks(root) if d.get("device", "disk") == "disk"]


def _connections(root: domain_xml.Element) -> Iterator[tuple[str, domain_xml.Element, str]]:
    """Yield (kind, element, attribute) of the names of networks, bridges and devices that interfaces use."""
    attributes = {"network": "network", "bridge": "bridge", "direct": "dev"}
    for interface in root.iterfind("./devices/interface"):
        kind = interface.get("type", "")
        source = interface.find("source")
        if kind in attributes and source is not None and source.get(attributes[kind]):
            yield kind, source, attributes[kind]
