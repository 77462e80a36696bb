"""The processors of the toy host: sets of declared features, and CPUs in libvirt's own XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vmferry.hosts.libvirt import cpu_xml
from vmferry.hosts.simulator.calls import Caller
from vmferry.hosts.simulator.cpu_models import MODELS, Processor
from vmferry.hosts.simulator.world import World
from vmferry.model.processors import Cpu, CpuFit, CpuMode, Guests, Offer, Platform, VmNeeds


class SimulatedCpus(Caller):
    """The toy host's calls about processors, which hosts.interface documents."""

    def platform(self) -> Platform:
        with self._look("platform") as world:
            return replace(world.platform, host=self.name)

    def needs(self, uuid: str) -> VmNeeds:
        with self._look("needs") as world:
            machine = world.machine(uuid)
            running, processor = machine.live is not None, machine.processor
            cpu = self._cpu_of(world, processor, running=running)
            return VmNeeds(
                vm=machine.name,
                uuid=machine.uuid,
                running=running,
                persistent=machine.definition is not None,
                guests=processor.guests,
                machine=processor.machine,
                mode=processor.mode,
                cpu=cpu,
                qemu=world.platform.qemu,
                libvirt=world.platform.libvirt,
                limited_to=processor.limited_to,
            )

    def cpu(self, xml: str) -> Cpu:
        with self._look("cpu"):
            return self._read(xml)

    def cpu_fit(self, xml: str, guests: Guests) -> CpuFit:
        with self._look("cpu_fit") as world:
            missing = set(self._read(xml).features) - set(self._offer(world, guests).cpu.features)
            return CpuFit(tuple(sorted(missing)), "it is incompatible" if missing else "")

    def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> Cpu:
        with self._look("cpu_baseline"):
            read = [self._read(xml) for xml in cpus]
            common = set(read[0].features).intersection(*(cpu.features for cpu in read))
            removed = sorted(set(MODELS["qemu64"]) - common)
            return self._read(cpu_xml.build("qemu64", sorted(common - set(MODELS["qemu64"])), removed))

    def set_cpu(self, uuid: str, xml: str | None, to: str) -> None:
        with self._act("set_cpu") as (world, _):
            machine = world.machine(uuid)
            processor = machine.processor
            if machine.live is not None and processor.live is None:
                processor.live = self._cpu_of(world, processor, running=True).xml
            before = processor.before or (processor.mode, processor.xml)
            if xml is None:
                (processor.mode, processor.xml), processor.before, processor.limited_to = before, None, ""
            else:
                processor.mode, processor.xml, processor.before, processor.limited_to = CpuMode.CUSTOM, xml, before, to

    def _cpu_of(self, world: World, processor: Processor, *, running: bool) -> Cpu:
        if running and processor.live is not None:
            return self._read(processor.live)
        if processor.mode is CpuMode.CUSTOM:
            return self._read(processor.xml)
        return self._offer(world, processor.guests).cpu if running else Cpu()

    def _offer(self, world: World, guests: Guests) -> Offer:
        offer = world.platform.offer(guests)
        if offer is None:
            raise self._refuse("look at its processor", f"it has no {guests} guests")
        return offer

    def _read(self, xml: str) -> Cpu:
        named = cpu_xml.read(cpu_xml.parse(xml))
        if named.model not in MODELS:
            raise self._refuse("read a CPU", f"Unknown CPU model {named.model}")
        features = (set(MODELS[named.model]) | set(named.required)) - set(named.removed)
        return Cpu(named.model, named.vendor, tuple(sorted(features)), xml)
