"""Processor compatibility: can a host run a VM's CPU, what have hosts in common, and limiting a VM to it.

The levels x86-64-v2 to v4 are those of the x86-64 psABI. libvirt and QEMU have no models of these names, so a
level is QEMU's plainest model of no vendor with the level's features (docs/decisions/0024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vmferry.errors import (
    BadCpuXml,
    BaselineUnfit,
    CpuUnfit,
    HostRefused,
    NoGuestsOfKind,
    NoSuchCpu,
    NotPersistent,
    VendorsDiffer,
)
from vmferry.hosts.interface import Host, Hosts
from vmferry.hosts.libvirt import cpu_xml
from vmferry.model import FencingToken, Finding, Severity
from vmferry.model.processors import (
    Cpu,
    CpuBaseline,
    CpuCheck,
    CpuFit,
    CpuLimited,
    CpuLimitRequest,
    CpuMode,
    Guests,
    Offer,
    Platform,
    VmNeeds,
)
from vmferry.preflight.findings import blocker
from vmferry.preflight.platform import cpu_missing, platform_findings, some

PLAIN = "qemu64"
_V2 = ("cx16", "lahf_lm", "pni", "popcnt", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "abm", "aes", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""Features of each level by libvirt's names: QEMU's scripts/cpu-x86-uarch-abi.py, and AES from v3 on."""
BASELINE, NONE = "baseline", "none"
GIVEN = frozenset({"hypervisor"})
"""QEMU gives it to every guest, whether the CPU names it or not."""
TOKEN = FencingToken("cpu-limit", 1)
"""No job acts here, and nothing can take it over: each call is whole."""


class CpuCompatibility:
    """Compares hosts' CPUs with VMs' and limits VMs to a CPU.

    `refuse_busy` raises VmBusy for the UUID of a VM that a job moves.
    """

    def __init__(self, hosts: Hosts, refuse_busy: Callable[[str], None]) -> None:
        self._hosts = hosts
        self._refuse_busy = refuse_busy

    def check(self, vm: str, connect: str, to: str) -> CpuCheck:
        """Check whether the host `to` can take the VM over as it is now. Raises NoSuchVm."""
        needs = self._needs(self._hosts.open(connect), vm)
        host = self._hosts.open(to)
        platform = host.platform()
        findings = list(platform_findings(needs, platform))
        offer = platform.offer(needs.guests)
        missing = cpu_missing(needs, offer) if offer else ()
        clear = all(found.severity is not Severity.BLOCKER for found in findings)
        if clear and offer and offer.comparable and _has_own(needs):
            findings += _second_opinion(host, needs)
        return CpuCheck(needs, platform.host, missing, tuple(findings))

    def baseline(self, hosts: Sequence[str], virt: str | None = None) -> CpuBaseline:
        """Return the greatest CPU that all the hosts can give, of KVM guests where all have KVM.

        `virt`: kvm or qemu, to choose the kind of guests. Raises NoGuestsOfKind, VendorsDiffer, BaselineUnfit.
        """
        opened = [self._hosts.open(host) for host in hosts]
        platforms = [host.platform() for host in opened]
        kvm = Guests("kvm", "x86_64")
        everywhere = all(platform.offer(kvm) for platform in platforms)
        guests = Guests(virt, "x86_64") if virt else kvm if everywhere else Guests("qemu", "x86_64")
        return self._baseline(opened, platforms, guests)

    def limit(self, request: CpuLimitRequest) -> CpuLimited:
        """Change the CPU of a VM's definition; a VM that runs has it after its next start.

        Raises NoSuchVm, NoSuchCpu, BadCpuXml, NotPersistent, CpuUnfit, VmBusy, and what `baseline` raises.
        """
        host = self._hosts.open(request.connect)
        needs = self._needs(host, request.vm)
        if not needs.persistent:
            raise NotPersistent(vm=needs.vm)
        if request.to == NONE:
            return self._unlimit(host, needs, request)
        others = [self._hosts.open(name) for name in request.hosts]
        platforms = [one.platform() for one in (host, *others)]
        xml = request.xml or self._wanted(request.to, [host, *others], platforms, needs.guests)
        cpu = host.cpu(xml)
        if not cpu.model:
            raise BadCpuXml(reason="it names no model")
        for one in (host, *others):
            fit = one.cpu_fit(xml, needs.guests)
            if not fit.good:
                raise CpuUnfit(host=one.name, vm=needs.vm, to=request.to, missing=_in_words(fit))
        self._set(request.connect, needs, xml, request.to)
        before = _now(needs, _offer(platforms[0], needs.guests))
        return _limited(needs, request.to, cpu, before, waits=needs.running)

    def _unlimit(self, host: Host, needs: VmNeeds, request: CpuLimitRequest) -> CpuLimited:
        changed = bool(needs.limited_to)
        self._set(request.connect, needs, None, NONE)
        if needs.running:
            return CpuLimited(needs.vm, NONE, Cpu(), (), (), waits=changed, changed=changed)
        offer = _offer(host.platform(), needs.guests)
        after = self._needs(host, needs.uuid)
        cpu = Cpu(after.cpu.model, after.cpu.vendor, _now(after, offer), after.cpu.xml)
        return replace(_limited(needs, NONE, cpu, _now(needs, offer), waits=False), changed=changed)

    def _set(self, connect: str, needs: VmNeeds, xml: str | None, to: str) -> None:
        self._refuse_busy(needs.uuid)
        self._hosts.open(connect, TOKEN).set_cpu(needs.uuid, xml, to)

    def _wanted(self, to: str, hosts: Sequence[Host], platforms: Sequence[Platform], guests: Guests) -> str:
        if to == BASELINE:
            return self._baseline(hosts, platforms, guests).cpu.xml
        if to in LEVELS:
            return cpu_xml.build(PLAIN, LEVELS[to], disable=("svm",))  # of AMD alone, and no level has it
        if to not in _offer(platforms[0], guests).models:
            raise NoSuchCpu(host=platforms[0].host, model=to, arch=guests.arch)
        return cpu_xml.build(to)

    def _baseline(self, hosts: Sequence[Host], platforms: Sequence[Platform], guests: Guests) -> CpuBaseline:
        cpus = [_offer(platform, guests).cpu for platform in platforms]
        names = tuple(platform.host for platform in platforms)
        if len({cpu.vendor for cpu in cpus}) > 1:
            vendors = "; ".join(
                f"{name} has {cpu.vendor or 'none named'}" for name, cpu in zip(names, cpus, strict=True)
            )
            raise VendorsDiffer(vendors=vendors)
        reasons: list[str] = []
        for host in hosts:  # an older libvirt may not know a model that a newer one can name for all
            try:
                cpu = host.cpu_baseline([cpu.xml for cpu in cpus], guests)
                unfit = [_in_words(fit) for one in hosts if not (fit := one.cpu_fit(cpu.xml, guests)).good]
            except HostRefused as error:
                unfit = [str(error)]
            if not unfit:
                return CpuBaseline(names, guests, cpu)
            reasons += unfit
        raise BaselineUnfit(hosts=", ".join(names), reason="; ".join(dict.fromkeys(reasons)))

    def _needs(self, host: Host, vm: str) -> VmNeeds:
        return host.needs(host.vm(vm).uuid)


def _has_own(needs: VmNeeds) -> bool:
    """Tell whether the VM has a CPU of its own, which a host must be able to give it as it is."""
    return bool(needs.cpu.xml) and not needs.lenient and (needs.running or needs.mode is CpuMode.CUSTOM)


def _second_opinion(host: Host, needs: VmNeeds) -> list[Finding]:
    """Find what libvirt of the host says against the VM's CPU, where the lists of features found nothing."""
    try:
        fit = host.cpu_fit(needs.cpu.xml, needs.guests)
    except HostRefused as error:
        return [blocker(str(error), "upgrade libvirt there, or choose another host")]
    what = f"{host.name} cannot give {needs.vm} its CPU: {_in_words(fit)}"
    return [] if fit.good else [blocker(what, "choose another host")]


def _offer(platform: Platform, guests: Guests) -> Offer:
    offer = platform.offer(guests)
    if offer is None:
        present = ", ".join(str(offer.guests) for offer in platform.offers) or "none"
        raise NoGuestsOfKind(host=platform.host, guests=guests, present=present)
    return offer


def _now(needs: VmNeeds, offer: Offer) -> tuple[str, ...]:
    """Return the features that the VM has, or would be started with."""
    adapts = needs.mode is not CpuMode.CUSTOM and not needs.running
    return offer.cpu.features if adapts else needs.cpu.features


def _limited(needs: VmNeeds, to: str, cpu: Cpu, before: tuple[str, ...], *, waits: bool) -> CpuLimited:
    gains, loses = set(cpu.features) - set(before), set(before) - set(cpu.features) - GIVEN
    return CpuLimited(needs.vm, to, cpu, tuple(sorted(gains)), tuple(sorted(loses)), waits)


def _in_words(fit: CpuFit) -> str:
    return some(fit.missing) or fit.reason
