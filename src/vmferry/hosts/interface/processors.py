"""The host's processors, and what its guests bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.model import Load
from vmferry.model.processors import Cpu, CpuFit, Guests, Platform, VmNeeds


class HostProcessors(Protocol):
    """The host's processors, and what its guests bear."""

    @query
    def platform(self) -> Platform:
        """Its versions, and the CPUs and machine types that it has for guests."""

    @query
    def needs(self, uuid: str) -> VmNeeds:
        """What the VM asks of a host that is to take it over: one that runs or is saved, as it runs."""

    @query
    def cpu(self, xml: str) -> Cpu:
        """A <cpu> element with all its features. Raises BadCpuXml."""

    @query
    def cpu_fit(self, xml: str, guests: Guests) -> CpuFit:
        """Can it give such guests this CPU? Raises HostRefused for a model or feature that it does not know."""

    @query
    def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> Cpu:
        """The greatest CPU common to these (Offer.cpu.xml of several hosts) that can migrate.

        Raises HostRefused when there is none, or when it does not know one of them.
        """

    def set_cpu(self, uuid: str, xml: str | None, to: str) -> None:
        """Give the persistent definition this CPU, keeping in it what was there; None puts that back.

        Topology, NUMA cells and caches stay. One that runs or is saved has it after its next start.
        Raises NotPersistent.
        """

    @query
    def load(self) -> Load:
        """What its running guests and its storages bear; asked once a second, so it waits for nobody."""
