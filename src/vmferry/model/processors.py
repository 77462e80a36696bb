"""What a VM asks of a host's processor and hypervisor, and what a host has to offer.

Features go by libvirt's names, sorted. Versions are numbers as libvirt gives them: 7002022 is 7.2.22.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmferry.model.plans import Finding, Severity


class CpuMode(StrEnum):
    """libvirt's <cpu mode>: where a VM's CPU comes from."""

    CUSTOM = "custom"
    HOST_MODEL = "host-model"
    PASSTHROUGH = "host-passthrough"
    MAXIMUM = "maximum"


@dataclass(frozen=True, slots=True)
class Guests:
    """The kind of guests that an emulator runs: kvm or qemu (emulated) of an architecture."""

    virt: str
    arch: str

    def __str__(self) -> str:
        return f"{self.arch} {'KVM' if self.virt == 'kvm' else 'emulated'}"


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU's model and features, and `xml`, libvirt's <cpu> element, which only hosts read."""

    model: str = ""
    vendor: str = ""
    """Intel, AMD, ...; empty where it does not matter."""
    features: tuple[str, ...] = ()
    """All of them, those of the model too."""
    xml: str = ""


@dataclass(frozen=True, slots=True)
class VmNeeds:
    """What a VM asks of a host that is to take it over as it runs or is saved, or to start it."""

    vm: str
    uuid: str
    running: bool
    """It has memory that lives on: it runs, is paused, or is in a saved state."""
    persistent: bool
    guests: Guests
    machine: str
    """Canonical: pc-q35-7.2, not q35."""
    mode: CpuMode
    cpu: Cpu
    """Of one that runs, the CPU that its guest sees. Of one that is off, what its definition asks for."""
    qemu: int
    libvirt: int
    forbidden: tuple[str, ...] = ()
    """Features that the host's CPU must not have."""
    lenient: bool = False
    """libvirt starts it without the features that a host lacks (check='none')."""
    limited_to: str = ""
    """What `vmferry cpu limit` set; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host has for one kind of guests."""

    guests: Guests
    cpu: Cpu
    """The most that a guest can have there."""
    models: tuple[str, ...]
    """CPU models that libvirt knows there, whether the host can run them or not."""
    machines: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    """Short names of machine types, as q35, with what they mean there."""
    comparable: bool = True
    """libvirt compares CPUs of this architecture."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A host's versions, and what it has for guests."""

    host: str
    qemu: int
    libvirt: int
    offers: tuple[Offer, ...]

    def offer(self, guests: Guests) -> Offer | None:
        return next((offer for offer in self.offers if offer.guests == guests), None)


@dataclass(frozen=True, slots=True)
class CpuFit:
    """Whether a host can give a guest some CPU: `missing` and `reason` are empty if it can."""

    missing: tuple[str, ...] = ()
    reason: str = ""
    """libvirt's own words, where it refuses the CPU."""

    @property
    def good(self) -> bool:
        return not (self.missing or self.reason)


# -- what is asked and answered: `vmferry cpu`


@dataclass(frozen=True, slots=True)
class CpuCheck:
    """Whether a host can run a VM's CPU, with the VM in its present state."""

    needs: VmNeeds
    host: str
    missing: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def possible(self) -> bool:
        return all(found.severity is not Severity.BLOCKER for found in self.findings)


@dataclass(frozen=True, slots=True)
class CpuBaseline:
    """The greatest CPU that all these hosts can give their guests."""

    hosts: tuple[str, ...]
    guests: Guests
    cpu: Cpu


@dataclass(frozen=True, slots=True)
class CpuLimitRequest:
    """What a person asked for: `vmferry cpu limit`."""

    vm: str
    connect: str
    to: str
    """none, baseline, x86-64-v2, x86-64-v3, x86-64-v4, or a model that libvirt knows."""
    hosts: tuple[str, ...] = ()
    """Of a baseline: the hosts beside the VM's own."""
    xml: str = ""
    """A <cpu> element of one's own; it comes before `to`, which then only names it."""


@dataclass(frozen=True, slots=True)
class CpuLimited:
    """A VM's CPU after it was changed in its definition."""

    vm: str
    to: str
    cpu: Cpu
    gains: tuple[str, ...]
    """Features beyond those that it has now, or that its host would give it; unknown (empty) while `none` waits."""
    loses: tuple[str, ...]
    waits: bool
    """It runs or is saved with its former CPU until it is shut down and started."""
    changed: bool = True
    """False: it was not limited, so that there was nothing to give back."""


def version_text(number: int) -> str:
    """Return libvirt's version number as text: 7002022 as 7.2.22."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
