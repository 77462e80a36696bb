"""What libvirt needs here to start a VM again exactly as it runs now: looked for before its memory leaves QEMU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import libvirt

from vmferry.hosts.libvirt import definition as written
from vmferry.hosts.libvirt import domain_xml, host_resources
from vmferry.hosts.libvirt.domain_xml import Element
from vmferry.hosts.libvirt.host_resources import there
from vmferry.hosts.libvirt.inspect import nvram
from vmferry.model import Changes, Definition, Lack

DRIVES = ("cdrom", "floppy")
BOOT = ("kernel", "initrd")
_BACK = "put it back"
_SECRET_USAGE = {
    "volume": libvirt.VIR_SECRET_USAGE_TYPE_VOLUME,
    "ceph": libvirt.VIR_SECRET_USAGE_TYPE_CEPH,
    "iscsi": libvirt.VIR_SECRET_USAGE_TYPE_ISCSI,
    "tls": libvirt.VIR_SECRET_USAGE_TYPE_TLS,
    "vtpm": libvirt.VIR_SECRET_USAGE_TYPE_VTPM,
}
_AS_IT_RUNS = libvirt.VIR_DOMAIN_XML_SECURE


def definition_now(domain: libvirt.virDomain) -> Definition:
    """Return the VM's definition as it runs now or, when it is off, as it would start; without snapshots."""
    return Definition(domain.UUIDString(), domain.XMLDesc(_AS_IT_RUNS))


def lacks(conn: libvirt.virConnect, domain: libvirt.virDomain) -> Sequence[Lack]:
    """Return what this host lacks to start the VM as it runs now or, when it is off, as it would start."""
    now = definition_now(domain)
    return of_xml(conn, domain_xml.parse(now.xml), name=domain.name(), runs=bool(domain.isActive()))


def of_xml(conn: libvirt.virConnect, root: Element, *, name: str, runs: bool) -> Sequence[Lack]:
    found = [
        *(lack for disk in domain_xml.disks(root) for lack in _disk(disk, name)),
        *_variables(root, runs=runs),
        *host_resources.own(root),
        *_networks(conn, root),
        *_secrets(conn, root),
    ]
    return list(dict.fromkeys(found))


def leave_out_gone(root: Element) -> tuple[str, ...]:
    """Leave out of a VM that is loaded from its memory what is gone and no guest that runs needs.

    These are discs in drives, and the kernel that it was started from, with its initrd and options: QEMU would read
    them for the guest's next boot. Seen with QEMU 7.2: it takes the memory without, and the guest runs on; until it is
    started anew from the whole definition it boots from its disks. Returns them, as "/iso/a.iso (sda)".
    """
    found = _leave_out_kernel(root)
    for disk in domain_xml.disks(root):
        where = domain_xml.source_where(disk)
        if disk.get("device") in DRIVES and isinstance(where, Path) and not there(where):
            found.append(f"{where} ({domain_xml.target_of(disk)})")
            domain_xml.change_media(root, {domain_xml.target_of(disk): None})
    return tuple(found)


def _leave_out_kernel(root: Element) -> list[str]:
    named = [(kind, Path("/", text.strip())) for kind in BOOT if (text := root.findtext(f"./os/{kind}"))]
    gone = [f"the {kind} {path}" for kind, path in named if not there(path)]
    boot = root.find("./os")
    if gone and boot is not None:
        for element in [each for each in boot if each.tag in (*BOOT, "cmdline")]:
            boot.remove(element)
    return gone


def needed_to_load(lacks: Sequence[Lack]) -> list[Lack]:
    """Return those lacks that keep a saved state from being loaded: all but what `leave_out_gone` leaves out."""
    return [lack for lack in lacks if not (lack.drive or lack.what.startswith(tuple(f"the {kind} " for kind in BOOT)))]


def _disk(disk: Element, name: str) -> Iterator[Lack]:
    """Yield what a disk lacks of its image and of all that lies below."""
    source, target = disk.find("source"), domain_xml.target_of(disk)
    drive = target if disk.get("device") in DRIVES else ""
    if source is None or (drive and source.get("startupPolicy") in ("optional", "requisite")):
        return  # libvirt itself leaves out what is not there
    at: Element | None = disk
    while at is not None:
        where = domain_xml.source_where(at)
        if isinstance(where, Path) and where != Path("/") and not there(where):
            what = f"the disc {where} in {target}" if drive else f"the image {where} of disk {target}"
            cure = f"put it back, or eject it: `virsh change-media '{name}' {target} --eject`" if drive else _BACK
            yield Lack(what, cure, drive)
        at = at.find("backingStore")


def _variables(root: Element, *, runs: bool) -> Iterator[Lack]:
    """Yield the firmware's variables if they are missing.

    libvirt would start the VM with fresh ones from the template, and without its boot entries and keys.
    """
    path = nvram(root)
    if path is None or there(path):
        return
    what = f"the firmware's variables {path}"
    if runs:
        cure = "put them back, or shut the VM down and start it: libvirt makes new ones, without its boot entries"
        yield Lack(what, cure)
    elif (element := root.find("./os/nvram[@template]")) is not None:
        template = Path("/", element.get("template", ""))
        if not there(template):
            yield Lack(f"{what}, and the template {template} to make new ones from", _BACK)


def _networks(conn: libvirt.virConnect, root: Element) -> Iterator[Lack]:
    for kind, name in written.missing_connections(conn, root, {}):
        cure = f"start it: `virsh net-start '{name}'`" if kind == "network" else "make it again"
        yield Lack(f"the {_KINDS.get(kind, kind)} {name}", cure)


_KINDS = {"direct": "network device"}


def _secrets(conn: libvirt.virConnect, root: Element) -> Iterator[Lack]:
    for secret in root.iterfind("./devices//secret"):
        uuid, usage = secret.get("uuid"), secret.get("usage")
        try:
            if uuid:
                found = conn.secretLookupByUUIDString(uuid)
            elif usage:
                found = conn.secretLookupByUsage(
                    _SECRET_USAGE.get(secret.get("type", ""), libvirt.VIR_SECRET_USAGE_TYPE_VOLUME), usage
                )
            else:
                continue
            found.value(0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                cure = "define it (`virsh secret-define`) and its value (`virsh secret-set-value`)"
                yield Lack(f"the secret {uuid or usage}, or its value", cure)


def refusal(conn: libvirt.virConnect, definition: Definition, changes: Changes) -> str:
    """Return what libvirt here says against the definition itself, in its words; empty when it accepts it.

    libvirt reads and checks all of the XML, as when it defines it, and makes a command line of it, which is thrown
    away. What it says of that (a file or a network that is not there) is another question: see `lacks`.
    """
    xml = written.text(definition, changes)
    try:
        conn.domainXMLToNative("qemu-argv", xml)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _AGAINST_XML:
            return str(error.get_error_message())
    return ""


_AGAINST_XML = frozenset(
    {
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_XML_DETAIL,
        libvirt.VIR_ERR_XML_INVALID_SCHEMA,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_OS_TYPE,
    }
)
