"""Reads a VM out of libvirt and its images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path

import libvirt
import libvirt_qemu

from vmferry.errors import ImageToolFailed, MistypedVm, NoSuchVm
from vmferry.hosts.libvirt import domain_xml, tpm
from vmferry.hosts.libvirt.domain_xml import Element
from vmferry.model import Disk, Image, Placed, Power, Url, Vm
from vmferry.qemu import img

_POWER = {
    libvirt.VIR_DOMAIN_RUNNING: Power.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: Power.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: Power.RUNNING,
    libvirt.VIR_DOMAIN_NOSTATE: Power.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: Power.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Power.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: Power.OFF,
    libvirt.VIR_DOMAIN_CRASHED: Power.OFF,
}

_TRIES = 3
AT_ONCE = 4
_OLDEST_FIRST = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL


def power(domain: libvirt.virDomain) -> Power:
    return _POWER[domain.state()[0]]


def read_vms(conn: libvirt.virConnect) -> list[Vm]:
    """Return all VMs of a host, without those that go while they are looked at.

    QEMU is not asked: one that does not answer would hold up the whole list. So all their memory counts as touched, and
    of block jobs mirrors alone are reported.
    """
    found = []
    for domain in conn.listAllDomains():
        try:
            found.append(read_vm(domain, ask_qemu=False))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return found


def read_vm(domain: libvirt.virDomain, *, ask_qemu: bool = True) -> Vm:
    """Return the VM with its disks' chains, read from the images themselves; read again if it ends meanwhile."""
    for _ in range(_TRIES):
        try:
            return _read_vm(domain, ask_qemu=ask_qemu)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise
    return _read_vm(domain, ask_qemu=ask_qemu)


def _read_vm(domain: libvirt.virDomain, *, ask_qemu: bool) -> Vm:
    root = domain_xml.parse(domain.XMLDesc(0))
    now = power(domain)
    running = now is not Power.OFF
    asked = domain if ask_qemu and running else None
    disks = list(domain_xml.disks(root))
    memory_bytes = domain.maxMemory() * 1024
    touched_bytes = memory_bytes if asked is None else _touched(asked)
    return Vm(
        name=domain.name(),
        uuid=domain.UUIDString(),
        power=now,
        persistent=bool(domain.isPersistent()),
        memory_bytes=memory_bytes,
        disks=tuple(
            _disk(element, chain, domain.connect(), asked) for element, chain in zip(disks, _chains(disks), strict=True)
        ),
        nvram=nvram(root),
        tpm=_tpm(root, domain.UUIDString()),
        snapshots=tuple(s.getName() for s in domain.listAllSnapshots()),
        checkpoints=tuple(c.getName() for c in domain.listAllCheckpoints(_OLDEST_FIRST)),
        agent=_agent(root),
        touched_bytes=touched_bytes if running else 0,
        precopy=may_precopy(root),
        managed_save=bool(domain.hasManagedSaveImage()),
        no_save=_no_save(root, domain) or (None if asked is None else _blocked(asked)),
    )


def no_such_vm(conn: libvirt.virConnect, name: str, host: str) -> NoSuchVm:
    """Return the error for a name that no VM has, with up to three names that are spelled much alike."""
    names = {domain.name().casefold(): domain.name() for domain in conn.listAllDomains()}
    near = [names[found] for found in get_close_matches(name.casefold(), names, n=3)]
    return MistypedVm(vm=name, host=host, meant=" or ".join(near)) if near else NoSuchVm(vm=name, host=host)


def may_precopy(root: Element) -> bool:
    """May the VM's memory be saved while it runs? Only KVM tracks dirty pages without losing any.

    QEMU 7.2 under TCG: 1 guest of 8 came back from a live snapshot with stale pages and crashed; of those
    saved while standing none did.
    """
    return root.get("type") == "kvm"


def has_job(domain: libvirt.virDomain) -> bool:
    """Is a save or restore of the VM in flight, perhaps one that a killed worker had asked for?

    A migration that comes in is not reported here by libvirt: it may be a leftover, and is not waited for.
    """
    try:
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED or power(domain) is Power.OFF:
            return False
        raise


def _touched(domain: libvirt.virDomain) -> int:
    """Return the bytes of memory that QEMU holds, at most the guest's; all of it when that is not known."""
    most = int(domain.maxMemory()) * 1024
    rss = int(domain.memoryStats().get("rss", 0)) * 1024
    return min(rss, most) or most


def _chains(disks: Sequence[Element]) -> list[tuple[Image, ...]]:
    """Return the chains of all disks, read in parallel: each takes a qemu-img."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_chain, [domain_xml.placed_of(disk) for disk in disks]))


def _disk(
    element: Element, chain: tuple[Image, ...], conn: libvirt.virConnect, asked: libvirt.virDomain | None
) -> Disk:
    kind = element.get("type", "file")
    target = domain_xml.target_of(element)
    driver = element.find("driver")
    return Disk(
        target=target,
        chain=chain,
        device=element.get("device", "disk"),
        source="none" if element.find("source") is None else kind,
        readonly=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        encrypted=next(element.iter("encryption"), None) is not None,
        secret_missing=_secret_missing(element, conn),
        cache="" if driver is None else driver.get("cache", ""),
        block_job=_block_job(element, asked, target),
    )


def _secret_missing(element: Element, conn: libvirt.virConnect) -> str | None:
    """Return the UUID or usage of a secret that the disk's encryption names and libvirt lacks; None if it has all."""
    for secret in element.iterfind(".//encryption/secret"):
        uuid, usage = secret.get("uuid"), secret.get("usage")
        try:
            if uuid:
                conn.secretLookupByUUIDString(uuid)
            elif usage:
                conn.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, usage)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                raise
            return uuid or usage
    return None


def _chain(placed: Placed | None) -> tuple[Image, ...]:
    if placed is None:
        return ()
    where = placed.path
    volume = isinstance(where, Url) or where.is_block_device()
    unknown = Image(where, placed.format, 0, 0, volume=volume, slice_bytes=placed.slice_bytes)
    if isinstance(where, Path) and not (volume or where.is_file()):
        return (unknown,)
    try:
        return tuple(img.chain(placed))
    except ImageToolFailed:
        return (unknown,)


def _block_job(element: Element, asked: libvirt.virDomain | None, target: str) -> str | None:
    mirror = element.find("mirror")
    if mirror is not None:
        return mirror.get("job", "copy")
    if asked is None or not target or element.find("source") is None:
        return None
    try:
        job = asked.blockJobInfo(target, 0)
    except libvirt.libvirtError:
        return None
    return "block job" if job else None


def nvram(root: Element) -> Path | None:
    """Return the file of the firmware's variables; None if the VM has none."""
    element = root.find("./os/nvram")
    if element is None:
        return None
    source = element.find("source")
    name = element.text if source is None else source.get("file")
    return Path(name.strip()) if name and name.strip() else None


def _tpm(root: Element, uuid: str) -> Path | None:
    backend = root.find("./devices/tpm/backend")
    if backend is None or backend.get("type") != "emulator":
        return None
    return tpm.folder(uuid)


def _agent(root: Element) -> bool:
    return any(
        t.get("name") == "org.qemu.guest_agent.0" and t.get("state") == "connected"
        for t in root.iterfind("./devices/channel/target")
    )


def _blocked(domain: libvirt.virDomain) -> str | None:
    """Return what QEMU says against a migration, of which a save is one; libvirt asks it only as it begins."""
    try:
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-migrate"}', 0))
    except (libvirt.libvirtError, ValueError):
        return None
    reasons = answer.get("return", {}).get("blocked-reasons", [])
    return f"QEMU says: {'; '.join(reasons)}" if reasons else None


def _no_save(root: Element, domain: libvirt.virDomain) -> str | None:
    if root.find("./devices/hostdev") is not None:
        return "a host device is passed through to it"
    if any(i.get("type") == "hostdev" for i in root.iterfind("./devices/interface")):
        return "a host network device is passed through to it"
    if root.find("./devices/filesystem") is not None:
        return "a host folder is shared with it"
    if domain.state()[0] == libvirt.VIR_DOMAIN_PMSUSPENDED:
        return "it sleeps (suspended to RAM): wake it first"
    return None
