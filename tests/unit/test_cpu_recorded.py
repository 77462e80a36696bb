"""What is read out of libvirt's capabilities: recorded on a real host (AMD, QEMU 7.2), and made up (Intel, older)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from vmferry.errors import BadCpuXml
from vmferry.hosts.libvirt import cpu as processors
from vmferry.hosts.libvirt import cpu_xml, domain_xml
from vmferry.model.processors import Guests, Platform

RECORDED = Path(__file__).with_name("recorded")
KVM, EMULATED = Guests("kvm", "x86_64"), Guests("qemu", "x86_64")
ORIGINAL = (
    "<cpu mode='host-passthrough' check='none' migratable='on'><topology sockets='1' dies='1' cores='2' threads='1'/>"
    "<cache mode='passthrough'/><numa><cell id='0' cpus='0-1' memory='65536' unit='KiB'/></numa></cpu>"
)


@dataclass
class Recording:
    """A libvirtd that said so once; what CPU models have is answered by libvirt itself (its test driver)."""

    folder: Path
    live: libvirt.virConnect

    def getVersion(self) -> int:
        return 7002022

    def getLibVersion(self) -> int:
        return 9000000

    def getCapabilities(self) -> str:
        return (self.folder / "capabilities.xml").read_text()

    def getDomainCapabilities(self, _emulator: None, _arch: str, _machine: None, virt: str, _flags: int) -> str:
        return (self.folder / f"{virt}.xml").read_text()

    def baselineCPU(self, cpus: list[str], flags: int) -> str:
        answered: str = self.live.baselineCPU(cpus, flags)
        return answered


@pytest.fixture
def live() -> Iterator[libvirt.virConnect]:
    opened = libvirt.open("test:///default")
    try:
        yield opened
    finally:
        opened.close()


def platform(name: str, live: libvirt.virConnect) -> Platform:
    return processors.platform(Recording(RECORDED / name, live), name)


def test_a_host_offers_kvm_and_emulated_guests_each_with_its_own_cpu(live: libvirt.virConnect) -> None:
    found = platform("amd", live)
    assert {str(offer.guests) for offer in found.offers} >= {"x86_64 KVM", "x86_64 emulated"}
    kvm, emulated = found.offer(KVM), found.offer(EMULATED)
    assert kvm and emulated
    assert (kvm.cpu.model, kvm.cpu.vendor) == ("EPYC-Milan", "AMD")
    assert emulated.cpu.model == "EPYC"
    assert "avx2" in emulated.cpu.features
    assert "avx2" not in kvm.cpu.features, "the capabilities take it away from the model"
    assert "x2apic" in kvm.cpu.features, "the capabilities add it to the model"


def test_short_names_of_machine_types_are_told_apart_from_what_they_mean(live: libvirt.virConnect) -> None:
    offer = platform("amd", live).offer(KVM)
    assert offer
    assert dict(offer.aliases) == {"pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2"}
    assert "pc-q35-7.2" in offer.machines
    assert "q35" not in offer.machines


def test_a_host_without_emulation_offers_kvm_alone(live: libvirt.virConnect) -> None:
    found = platform("intel", live)
    assert [str(offer.guests) for offer in found.offers] == ["x86_64 KVM"]
    offer = found.offer(KVM)
    assert offer
    assert offer.cpu.vendor == "Intel"
    assert "sse4.2" in offer.cpu.features, "the model has it"
    assert "aes" not in offer.cpu.features
    assert offer.models == ("Haswell", "Westmere")


def test_a_forced_or_optional_feature_is_not_asked_of_the_host(live: libvirt.virConnect) -> None:
    policies = {"require": "avx2", "force": "avx512f", "optional": "aes", "disable": "svm", "forbid": "sse2"}
    features = "".join(f"<feature policy='{policy}' name='{name}'/>" for policy, name in policies.items())
    read = processors.read(
        Recording(RECORDED / "amd", live), f"<cpu mode='custom'><model>qemu64</model>{features}</cpu>"
    )
    assert "avx2" in read.features
    assert not {"avx512f", "aes", "svm", "sse2"} & set(read.features)


def domain(cpu: str) -> etree._Element:
    return domain_xml.parse(f"<domain><name>vm</name><metadata><a:b xmlns:a='urn:a'/></metadata>{cpu}</domain>")


def part(root: etree._Element, path: str) -> str:
    found = root.find(path)
    assert found is not None
    return etree.tostring(found, method="c14n").decode()


def test_a_limit_keeps_the_layout_and_leaves_out_what_only_the_hosts_own_cpu_can_have() -> None:
    root = domain(ORIGINAL)
    cpu_xml.limit(root, cpu_xml.build("qemu64", ["avx2"]), "x86-64-v3")
    now = root.find("cpu")
    assert now is not None
    assert now.findtext("model") == "qemu64"
    assert part(now, "topology") == part(domain(ORIGINAL), "cpu/topology")
    assert part(now, "numa") == part(domain(ORIGINAL), "cpu/numa")
    assert now.find("cache") is None, "libvirt refuses mode='passthrough' of it for a named model"
    assert cpu_xml.limited_to(root) == "x86-64-v3"


def test_a_second_limit_keeps_the_cpu_from_before_the_first() -> None:
    root = domain(ORIGINAL)
    for level in ("x86-64-v3", "x86-64-v2"):
        cpu_xml.limit(root, cpu_xml.build("qemu64"), level)
    assert cpu_xml.limited_to(root) == "x86-64-v2"
    assert cpu_xml.unlimit(root)
    assert part(root, "cpu") == part(domain(ORIGINAL), "cpu")
    assert root.find("metadata/{urn:a}b") is not None, "what others keep there stays"
    assert not cpu_xml.unlimit(root), "nothing is left to give back"


def test_a_vm_that_was_given_more_cpus_while_it_was_limited_keeps_them() -> None:
    root = domain(ORIGINAL)
    cpu_xml.limit(root, cpu_xml.build("qemu64"), "x86-64-v2")
    topology = root.find("cpu/topology")
    assert topology is not None
    topology.set("cores", "8")
    cpu_xml.unlimit(root)
    assert "cores='8'" in part(root, "cpu/topology").replace('"', "'")
    assert root.find("cpu/cache") is not None, "what the limit had to leave out comes back"


def test_a_definition_without_a_cpu_has_none_again() -> None:
    root = domain("")
    cpu_xml.limit(root, cpu_xml.build("qemu64"), "x86-64-v2")
    assert root.find("cpu") is not None
    cpu_xml.unlimit(root)
    assert root.find("cpu") is None


@pytest.mark.parametrize("xml", ["", "<cpu", "<domain/>", "qemu64"])
def test_what_is_no_cpu_element_is_refused(xml: str) -> None:
    with pytest.raises(BadCpuXml):
        cpu_xml.parse(xml)


def test_an_entity_in_a_cpu_element_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("Westmere")
    xml = f"<!DOCTYPE cpu [<!ENTITY x SYSTEM 'file://{secret}'>]><cpu><model>&x;</model></cpu>"
    with pytest.raises(BadCpuXml, match="document type"):
        cpu_xml.parse(xml)
