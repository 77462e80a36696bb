"""Processors for the toy world: declared sets of features, in place of what a machine has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmferry.hosts.libvirt import cpu_xml
from vmferry.model.processors import Cpu, CpuMode, Guests, Offer, Platform

KVM = Guests("kvm", "x86_64")
EPYC = ("avx", "avx2", "cx16", "lahf_lm", "pni", "popcnt", "sse4.1", "sse4.2", "ssse3")
MODELS = {"EPYC": EPYC, "Haswell": ("avx", "avx2", "hle", "pni"), "qemu64": ("pni", "svm")}
"""CPU models of the toy, with their features."""


def platform(
    host: str = "memory",
    features: Sequence[str] = EPYC,
    vendor: str = "AMD",
    qemu: int = 7002022,
    libvirt: int = 9000000,
) -> Platform:
    """Return the platform of a host whose KVM guests can have these CPU features."""
    plain = MODELS["qemu64"]
    xml = cpu_xml.build("qemu64", sorted({*features} - {*plain}), sorted({*plain} - {*features}))
    cpu = Cpu("qemu64", vendor, tuple(sorted(features)), xml)
    machines = tuple(m for m in ("pc-q35-5.2", "pc-q35-7.2", "pc-q35-8.1") if _came_with(m) <= qemu)
    offer = Offer(KVM, cpu, tuple(MODELS), machines, tuple(("q35", newest) for newest in machines[-1:]))
    return Platform(host, qemu, libvirt, (offer,))


def _came_with(machine: str) -> int:
    major, minor = machine.removeprefix("pc-q35-").split(".")
    return int(major) * 1_000_000 + int(minor) * 1000


@dataclass(eq=False)
class Processor:
    """The CPU of a VM: as defined, as it runs where that is something else, and as it was before a limit."""

    mode: CpuMode = CpuMode.HOST_MODEL
    xml: str = ""
    live: str | None = None
    guests: Guests = KVM
    machine: str = "pc-q35-7.2"
    before: tuple[CpuMode, str] | None = None
    limited_to: str = ""
