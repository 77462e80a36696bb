"""The host's processors, and the load of its guests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.model import Load
from vmferry.model.processors import Cpu, CpuFit, Guests, Platform, VmNeeds


class HostProcessors(Protocol):
    """The host's processors, and the load of its guests."""

    @query
    def platform(self) -> Platform:
        """Return the host's QEMU and libvirt versions, and the CPUs and machine types that it has for guests."""

    @query
    def needs(self, uuid: str) -> VmNeeds:
        """Return what the VM asks of a host that takes it over: as it runs, or was saved, or else as it is defined."""

    @query
    def cpu(self, xml: str) -> Cpu:
        """Return the CPU of a <cpu> element, with all its features. Raises BadCpuXml."""

    @query
    def cpu_fit(self, xml: str, guests: Guests) -> CpuFit:
        """Return whether the host can give such guests this CPU, and which features it lacks.

        Raises HostRefused for a model or feature that the host does not know.
        """

    @query
    def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> Cpu:
        """Return the greatest CPU common to these (Offer.cpu.xml of several hosts) that can migrate.

        Raises HostRefused when there is none, or when the host does not know one of them.
        """

    def set_cpu(self, uuid: str, xml: str | None, to: str) -> None:
        """Give the VM's persistent definition this CPU, noting in it the one from before; None puts that back.

        `to`: the limit's name. Topology, NUMA cells and caches stay. A VM that runs or is saved has the CPU after its
        next start.
        Raises NotPersistent.
        """

    @query
    def load(self) -> Load:
        """Return the load of the running guests and of the storages; asked once a second, so it waits for nothing."""
