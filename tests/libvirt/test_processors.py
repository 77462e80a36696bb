"""Processor compatibility on a real libvirtd: what a guest sees of its CPU, limited and given back."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from lxml.builder import E  # type: ignore[import-not-found]  # lxml-stubs has none for it
from tests.support.job_states import said

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.guests.bare import BARE_GUEST, bare_boot
from vmferry.lab.vmferry_command import VmferryCommand

pytestmark = pytest.mark.long

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
V2 = {"lahf_lm", "popcnt", "sse4.1", "sse4.2", "ssse3"}
"""What x86-64-v2 adds to qemu64."""
TOPOLOGY = "<topology sockets='1' dies='1' cores='2' threads='1'/>"
NUMA = "<numa><cell id='0' cpus='0-1' memory='32' unit='MiB'/></numa>"
SHAPES = {
    "host-model": f"<cpu mode='host-model'>{TOPOLOGY}{NUMA}</cpu>",
    "maximum": f"<cpu mode='maximum'>{TOPOLOGY}<cache mode='passthrough'/>{NUMA}</cpu>",
    "model": f"<cpu mode='custom' match='exact'><model>Westmere</model>{TOPOLOGY}<cache level='3' mode='emulate'/>"
    f"<feature policy='disable' name='aes'/>{NUMA}</cpu>",
    "none": "",
}
"""CPUs that people give their VMs."""


@dataclass
class Empty:
    """VMs of QEMU alone, paused or off: a CPU shows itself without a guest."""

    connection: libvirt.virConnect
    made: list[libvirt.virDomain]

    def define(self, name: str, cpu: str) -> libvirt.virDomain:
        root = E.domain(
            E.name(name),
            E.memory("32", unit="MiB"),
            E.vcpu("2"),
            E.os(E.type("hvm", arch="x86_64", machine="q35")),
            E.devices(E.emulator("/usr/bin/qemu-system-x86_64")),
            type="qemu",
        )
        if cpu:
            root.append(etree.fromstring(cpu))
        self.made.append(self.connection.defineXML(etree.tostring(root, encoding="unicode")))
        return self.made[-1]

    def start(self, domain: libvirt.virDomain) -> None:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def end(self) -> None:
        for domain in self.made:
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


@pytest.fixture
def empty(connection: libvirt.virConnect) -> Iterator[Empty]:
    made = Empty(connection, [])
    try:
        yield made
    finally:
        made.end()


def cpu_text(domain: libvirt.virDomain) -> str:
    """The <cpu> of the definition, byte for byte as `virsh dumpxml --inactive` shows it."""
    text: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    begin = text.index("  <cpu ")
    return text[begin : text.index("  <clock", begin)]


def live_cpu(domain: libvirt.virDomain) -> tuple[str, set[str]]:
    """The model and the features beside it that QEMU gave the guest, by libvirt."""
    cpu = etree.fromstring(domain.XMLDesc(0)).find("cpu")
    assert cpu is not None
    return cpu.findtext("model", ""), {f.get("name", "") for f in cpu.iterfind("feature[@policy='require']")}


def done(ferry: VmferryCommand, *words: str | Path) -> str:
    ended = ferry.run(*words)
    assert ended.code == 0, said(ended)
    return said(ended)


def test_a_vm_can_run_on_the_host_it_runs_on(lab: LabHost, empty: Empty, ferry: VmferryCommand) -> None:
    for shape, cpu in SHAPES.items():
        domain = empty.define(f"own {shape}", cpu)
        assert "can run" in done(ferry, "cpu", "check", domain.name(), lab.uri)
        empty.start(domain)
        assert "as it runs now" in done(ferry, "cpu", "check", domain.name(), lab.uri)


def test_a_feature_that_the_host_lacks_is_named_and_the_cure_cures(
    lab: LabHost, empty: Empty, ferry: VmferryCommand
) -> None:
    features = "".join(f"<feature policy='require' name='{name}'/>" for name in ("avx512f", "avx512bw", "popcnt"))
    domain = empty.define("wide", f"<cpu mode='custom' check='partial'><model>qemu64</model>{features}</cpu>")

    ended = ferry.run("cpu", "check", "wide", lab.uri)

    assert ended.code == 3, said(ended)
    assert "lacks CPU features that wide asks for: avx512bw, avx512f" in said(ended)
    with pytest.raises(libvirt.libvirtError, match="avx512f"):
        empty.start(domain)  # libvirt is of the same opinion
    cure = said(ended).split("`")[1]
    done(ferry, *shlex.split(cure)[1:])
    empty.start(domain)
    assert "can run" in done(ferry, "cpu", "check", "wide", lab.uri)


def test_a_guest_under_kvm_can_run_where_it_runs(lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand) -> None:
    if bare_boot().accelerator != "kvm":
        pytest.skip("KVM runs no guest here")
    guest = make_guest(BARE_GUEST)
    assert "as it runs now" in done(ferry, "cpu", "check", guest.name, lab.uri)


def test_a_saved_vm_has_the_cpu_that_it_was_saved_with(lab: LabHost, empty: Empty, ferry: VmferryCommand) -> None:
    domain = empty.define("saved", SHAPES["host-model"])
    empty.start(domain)
    model = live_cpu(domain)[0]
    domain.managedSave()
    assert "until it is shut down and started" in done(ferry, "cpu", "limit", "saved", "--to", "x86-64-v2")
    assert f"as it runs now CPU {model}" in done(ferry, "cpu", "check", "saved", lab.uri)
    domain.create()
    assert live_cpu(domain)[0] == model


@pytest.mark.parametrize("shape", ("maximum", "model", "none"))
def test_a_limited_vm_starts_with_the_limit_and_none_gives_back_every_byte(
    shape: str, empty: Empty, ferry: VmferryCommand
) -> None:
    domain = empty.define(f"limited {shape}", SHAPES[shape])
    before, whole = cpu_text(domain), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    for to in ("x86-64-v3", "x86-64-v2"):
        done(ferry, "cpu", "limit", domain.name(), "--to", to)

    empty.start(domain)

    model, features = live_cpu(domain)
    assert model == "qemu64"
    assert features >= V2
    assert "avx2" not in features
    root = etree.fromstring(domain.XMLDesc(0))
    if shape != "none":
        assert root.find("cpu/topology[@cores='2']") is not None
        assert root.find("cpu/numa/cell") is not None
    domain.destroy()
    done(ferry, "cpu", "limit", domain.name(), "--to", "none")
    assert cpu_text(domain) == before
    assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == whole


def test_a_vm_starts_with_the_baseline_of_its_hosts(
    lab: LabHost, empty: Empty, ferry: VmferryCommand, tmp_path: Path
) -> None:
    domain = empty.define("common", SHAPES["none"])
    file = tmp_path / "cpu.xml"
    file.write_text(ferry.run("cpu", "baseline", lab.uri, lab.uri, "--virt", "qemu", "--xml").out)
    done(ferry, "cpu", "limit", "common", "--to", file)
    empty.start(domain)
    model = etree.fromstring(file.read_text()).findtext("model")
    assert live_cpu(domain)[0] == model
    assert "can run" in done(ferry, "cpu", "check", "common", lab.uri)


def test_a_running_guest_is_limited_from_its_next_start_and_loses_nothing(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("worker", disks=(DiskSpec("vda"),)))
    domain = domain_of(guest)
    before, running = cpu_text(domain), live_cpu(domain)

    told = done(ferry, "cpu", "limit", guest.name, "--to", "x86-64-v2")

    assert "until it is shut down and started" in told
    assert live_cpu(domain) == running, "a guest's CPU does not change under it"
    guest.wait_acks(10)
    domain.destroy()
    domain.create()
    guest.wait_writing()
    assert live_cpu(domain)[1] >= V2
    done(ferry, "cpu", "limit", guest.name, "--to", "none")
    assert cpu_text(domain) == before
    domain.destroy()
    assert guest.verdict().clean, guest.verdict()


def test_a_limit_that_no_emulator_here_can_give_is_refused_and_changes_nothing(
    empty: Empty, ferry: VmferryCommand
) -> None:
    domain = empty.define("plain", SHAPES["none"])
    before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    ended = ferry.run("cpu", "limit", "plain", "--to", "x86-64-v4")
    assert ended.code == 3
    assert "it lacks avx512bw, avx512cd, avx512dq, avx512f, avx512vl" in said(ended)
    assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before


def test_a_transient_vm_is_not_limited(lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand) -> None:
    guest = make_guest(GuestSpec("fleeting", disks=(DiskSpec("vda"),), persistent=False))
    ended = ferry.run("cpu", "limit", guest.name, "--to", "x86-64-v2")
    assert ended.code == 3
    assert "is transient" in said(ended)
    guest.wait_acks(5)
