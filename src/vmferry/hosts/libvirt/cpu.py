"""What a libvirtd says about processors, emulators and versions, and the CPU of a VM's definition.

Which features a host lacks is computed from expanded lists: libvirt's own sentence names them too, but in the
daemon's language, and a forbidden feature hides the missing ones in it. Both were compared, and agree.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import libvirt

from vmferry.errors import NotPersistent
from vmferry.hosts.libvirt import cpu_xml, domain_xml, inspect
from vmferry.hosts.libvirt.domain_xml import Element
from vmferry.hosts.libvirt.folder_probe import User
from vmferry.model import Power
from vmferry.model.processors import Cpu, CpuFit, CpuMode, Guests, Offer, Platform, VmNeeds

X86 = ("i686", "x86_64")
"""Architectures whose CPUs libvirt compares with what the hypervisor can do (it does with s390x too)."""
EXPAND = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
NOT_MIGRATABLE = frozenset({"invtsc", "xsaves"})
"""libvirt's cpu_map has migratable='no' at these two; a passed-through CPU is given without them."""


def platform(conn: libvirt.virConnect, host: str) -> Platform:
    return Platform(host, conn.getVersion(), conn.getLibVersion(), tuple(_offers(conn)))


def other_user(conn: libvirt.virConnect) -> User | None:
    """Return the user that QEMU runs as, if this process is root and QEMU is not; None if libvirt does not tell."""
    root = domain_xml.parse(conn.getCapabilities())
    for model in root.iterfind("./host/secmodel"):
        label = next((label.text or "" for label in model.iterfind("baselabel")), "")
        if model.findtext("model") == "dac" and (found := re.fullmatch(r"\+?(\d+):\+?(\d+)", label)):
            user = User(int(found[1]), int(found[2]))
            return None if user.uid == os.geteuid() or os.geteuid() != 0 else user
    return None


def needs(conn: libvirt.virConnect, domain: libvirt.virDomain) -> VmNeeds:
    """Return what the VM asks of a host: as it runs or is saved now or, if it is off and not saved, to be started."""
    running, root = _as_it_is(domain)
    guests = _guests_of(root)
    mode, lenient, cpu, forbidden = _cpu_of(conn, root, guests, running=running)
    return VmNeeds(
        vm=domain.name(),
        uuid=domain.UUIDString(),
        running=running,
        persistent=bool(domain.isPersistent()),
        guests=guests,
        machine=_machine_of(conn, root, guests),
        mode=mode,
        cpu=cpu,
        qemu=conn.getVersion(),
        libvirt=conn.getLibVersion(),
        forbidden=forbidden,
        lenient=lenient and not running,
        limited_to=cpu_xml.limited_to(_definition(domain)) if domain.isPersistent() else "",
    )


def read(conn: libvirt.virConnect, xml: str) -> Cpu:
    """Return the CPU of a <cpu> element with all its features; a model that is not named adds none."""
    named = cpu_xml.read(cpu_xml.parse(xml))
    return Cpu(named.model, named.vendor, tuple(sorted(_expanded(conn, named))), xml)


def fit(conn: libvirt.virConnect, xml: str, guests: Guests) -> CpuFit:
    """Return libvirt's verdict on a CPU for such guests, and which features are missing.

    Raises libvirtError for a CPU that libvirt does not know.
    """
    virt, flag = guests.virt, libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        conn.compareHypervisorCPU(None, guests.arch, None, virt, xml, flag)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            raise
        have = _host_cpu(conn, _capabilities(conn, guests)).features
        return CpuFit(tuple(sorted(set(read(conn, xml).features) - set(have))), error.get_error_message())
    return CpuFit()


def baseline(conn: libvirt.virConnect, cpus: Sequence[str], guests: Guests) -> Cpu:
    """Return the greatest CPU that is in all of these, and that can migrate."""
    flag = libvirt.VIR_CONNECT_BASELINE_CPU_MIGRATABLE
    return read(conn, conn.baselineHypervisorCPU(None, guests.arch, None, guests.virt, list(cpus), flag))


def set_cpu(conn: libvirt.virConnect, uuid: str, xml: str | None, to: str) -> None:
    """Set the CPU of the VM's persistent definition; None gives back the one from before. Raises NotPersistent."""
    domain = conn.lookupByUUIDString(uuid)
    if not domain.isPersistent():
        raise NotPersistent(vm=domain.name())
    root = _definition(domain)
    if xml is not None:
        cpu_xml.limit(root, xml, to)
    elif not cpu_xml.unlimit(root):
        return
    conn.defineXML(domain_xml.text(root))


# -- a VM


def _definition(domain: libvirt.virDomain) -> Element:
    return domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


def _as_it_is(domain: libvirt.virDomain) -> tuple[bool, Element]:
    """Return whether the VM's memory lives on, running or saved, and its XML.

    The XML is read without MIGRATABLE, which hides what QEMU really gave.
    """
    if inspect.power(domain) is not Power.OFF:
        return True, domain_xml.parse(domain.XMLDesc(0))
    if domain.hasManagedSaveImage(0):
        return True, domain_xml.parse(domain.managedSaveGetXMLDesc(0))
    return False, domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def _guests_of(root: Element) -> Guests:
    type_ = root.find("os/type")
    return Guests(root.get("type", "kvm"), "x86_64" if type_ is None else type_.get("arch", "x86_64"))


def _machine_of(conn: libvirt.virConnect, root: Element, guests: Guests) -> str:
    type_ = root.find("os/type")
    machine = "" if type_ is None else type_.get("machine", "")
    return dict(_machines(conn, guests)).get(machine) or machine


def _cpu_of(
    conn: libvirt.virConnect, root: Element, guests: Guests, *, running: bool
) -> tuple[CpuMode, bool, Cpu, tuple[str, ...]]:
    """Return the CPU's mode, whether a host may lack something, the CPU, and the features that a host must not have."""
    element = root.find("cpu")
    if element is None:
        return CpuMode.CUSTOM, True, Cpu(), ()
    named, xml = cpu_xml.read(element), domain_xml.text(element).strip()
    mode = CpuMode(named.mode)
    if guests.arch not in X86 or (mode is not CpuMode.CUSTOM and not running):
        return mode, named.lenient, Cpu(named.model, named.vendor, (), xml), named.forbidden
    hosts = _host_cpu(conn, _capabilities(conn, guests))
    if mode is not CpuMode.CUSTOM:  # the guest has what its host has, less what the definition takes away
        left = set(hosts.features) - NOT_MIGRATABLE - set(named.removed)
        return mode, False, Cpu(hosts.model, hosts.vendor, tuple(sorted(left)), hosts.xml), named.forbidden
    cpu = Cpu(named.model, named.vendor, tuple(sorted(_expanded(conn, named))), xml)
    if running and guests.virt == "kvm" and not named.vendor:  # KVM shows the guest the host's vendor
        cpu = Cpu(cpu.model, hosts.vendor, cpu.features, xml)
    return mode, named.lenient, cpu, named.forbidden


# -- a host


def _offers(conn: libvirt.virConnect) -> Iterator[Offer]:
    for arch in domain_xml.parse(conn.getCapabilities()).iterfind("guest/arch"):
        for domain in arch.iterfind("domain"):
            guests = Guests(domain.get("type", ""), arch.get("name", ""))
            yield _offer(conn, guests)


def _offer(conn: libvirt.virConnect, guests: Guests) -> Offer:
    capabilities = _capabilities(conn, guests)
    machines = list(_machines(conn, guests))
    return Offer(
        guests=guests,
        cpu=_host_cpu(conn, capabilities),
        models=tuple(sorted(m.text or "" for m in capabilities.iterfind("cpu/mode[@name='custom']/model"))),
        machines=tuple(sorted(name for name, meant in machines if not meant)),
        aliases=tuple(sorted((name, meant) for name, meant in machines if meant)),
        comparable=guests.arch in X86,
    )


def _capabilities(conn: libvirt.virConnect, guests: Guests) -> Element:
    return domain_xml.parse(conn.getDomainCapabilities(None, guests.arch, None, guests.virt, 0))


def _machines(conn: libvirt.virConnect, guests: Guests) -> Iterator[tuple[str, str]]:
    """Yield each machine type, with what it means if it is a short name."""
    root = domain_xml.parse(conn.getCapabilities())
    for machine in root.iterfind(f"guest/arch[@name='{guests.arch}']//machine"):
        yield (machine.text or "").strip(), machine.get("canonical", "")


def _host_cpu(conn: libvirt.virConnect, capabilities: Element) -> Cpu:
    """Return the greatest CPU that a guest can have; an empty one where libvirt does not say."""
    mode = capabilities.find("cpu/mode[@name='host-model'][@supported='yes']")
    return Cpu() if mode is None or capabilities.findtext("arch") not in X86 else read(conn, cpu_xml.host_model(mode))


def _expanded(conn: libvirt.virConnect, named: cpu_xml.Named) -> set[str]:
    features: set[str] = set()
    if named.model:
        host = domain_xml.parse(conn.baselineCPU([cpu_xml.as_host(named)], EXPAND))
        features = {feature.get("name", "") for feature in host.iterfind("feature")}
    return (features | set(named.required)) - set(named.removed)
