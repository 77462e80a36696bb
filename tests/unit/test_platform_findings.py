"""What stands against a VM on another host: by its processor, machine type and versions, each with its cure."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from vmferry.hosts.simulator.cpu_models import EPYC, KVM, platform
from vmferry.model import Finding, Severity
from vmferry.model.processors import Cpu, CpuMode, Guests, Offer, Platform, VmNeeds
from vmferry.preflight.platform import platform_findings

NEEDS = VmNeeds(
    vm="web 1",
    uuid="u",
    running=True,
    persistent=True,
    guests=KVM,
    machine="pc-q35-7.2",
    mode=CpuMode.CUSTOM,
    cpu=Cpu("EPYC", "AMD", EPYC, "<cpu/>"),
    qemu=7002022,
    libvirt=9000000,
)
OFF = replace(NEEDS, running=False, cpu=replace(NEEDS.cpu, vendor=""))


def blockers(needs: VmNeeds, there: Platform) -> list[Finding]:
    return [found for found in platform_findings(needs, there) if found.severity is Severity.BLOCKER]


def notes(needs: VmNeeds, there: Platform) -> list[Finding]:
    return [found for found in platform_findings(needs, there) if found.severity is Severity.NOTE]


def with_offer(there: Platform, **changes: object) -> Platform:
    return replace(there, offers=tuple(replace(offer, **changes) for offer in there.offers))  # type: ignore[arg-type]


def test_an_equal_host_has_nothing_against_it() -> None:
    assert platform_findings(NEEDS, platform("b")) == ()


def test_a_newer_host_with_more_features_has_nothing_against_it() -> None:
    there = platform("b", (*EPYC, "avx512f"), qemu=8001000, libvirt=9007000)
    assert platform_findings(NEEDS, there) == ()


def test_missing_features_are_named_with_the_command_that_cures_it() -> None:
    there = platform("qemu+tls://b/system?no_verify=1", [name for name in EPYC if name not in ("avx", "avx2")])
    (found,) = blockers(NEEDS, there)
    assert found.what.endswith("lacks CPU features that web 1 has: avx, avx2")
    command = found.cure.split("`")[1]
    assert shlex.split(command) == [
        *("vmferry", "cpu", "limit", "web 1", "--to", "baseline"),
        *("--host", "qemu+tls://b/system?no_verify=1"),
    ]
    assert "shut it down and start it" in found.cure


def test_the_cure_of_a_vm_that_is_off_asks_for_no_restart() -> None:
    (found,) = blockers(OFF, platform("b", ("pni",)))
    assert "asks for" in found.what
    assert "shut" not in found.cure


def test_many_missing_features_do_not_fill_the_screen() -> None:
    needs = replace(NEEDS, cpu=Cpu("X", "AMD", tuple(f"f{n:02}" for n in range(40))))
    (found,) = blockers(needs, platform("b"))
    assert "f11 and 28 more" in found.what


def test_a_definition_that_tolerates_a_lack_is_told_of_it_and_goes() -> None:
    needs = replace(OFF, lenient=True)
    there = platform("b", ("pni",))
    assert blockers(needs, there) == []
    (note,) = notes(needs, there)
    assert "starts there without" in note.what


@pytest.mark.parametrize("missing", ((), ("avx2",)))
def test_a_running_vm_never_goes_to_another_vendor(missing: tuple[str, ...]) -> None:
    there = platform("b", [name for name in EPYC if name not in missing], vendor="Intel")
    found = blockers(NEEDS, there)
    assert "has a CPU of AMD, b has one of Intel" in found[0].what
    assert "shut the VM down" in found[0].cure
    assert not any("baseline" in one.cure for one in found), "two vendors have none in common"


def test_a_vm_that_is_off_and_names_no_vendor_may_go_to_any() -> None:
    assert blockers(OFF, platform("b", vendor="Intel")) == []


def test_a_vm_that_is_off_and_names_its_vendor_can_be_cured() -> None:
    needs = replace(OFF, cpu=replace(OFF.cpu, vendor="AMD"))
    (found,) = blockers(needs, platform("b", vendor="Intel"))
    assert "vmferry cpu limit 'web 1' --to x86-64-v2" in found.cure


def test_a_forbidden_feature_is_one_that_the_host_must_not_have() -> None:
    needs = replace(OFF, forbidden=("avx2",))
    (found,) = blockers(needs, platform("b"))
    assert "forbids: avx2" in found.what
    spared = replace(needs, cpu=Cpu("qemu64", "", ("pni",)))
    assert blockers(spared, platform("b", ("avx", "pni"))) == []


def test_a_guest_with_its_hosts_own_cpu_is_advised_to_be_limited() -> None:
    needs = replace(NEEDS, mode=CpuMode.PASSTHROUGH)
    assert blockers(needs, platform("b")) == []
    (note,) = notes(needs, platform("b"))
    assert "host-passthrough" in note.what
    assert "--to baseline" in note.cure
    assert notes(replace(needs, running=False), platform("b")) == [], "off, it takes what it finds"


def test_a_machine_type_that_came_later_is_told_with_the_version_that_has_it() -> None:
    there = platform("b", qemu=5002000, libvirt=9000000)
    found = blockers(OFF, there)
    assert [one.what for one in found] == ["b has no machine type pc-q35-7.2: it came with QEMU 7.2, there is 5.2.0"]
    assert "install QEMU 7.2 or newer there" in found[0].cure
    assert "give the VM pc-q35-5.2, which b has" in found[0].cure


def test_a_running_vm_cannot_change_its_machine_type() -> None:
    found = blockers(NEEDS, platform("b", qemu=5002000))
    (machine,) = [one for one in found if "machine type" in one.what]
    assert "virsh edit" not in machine.cure


def test_a_machine_type_that_was_removed_or_is_of_another_distribution_is_told_apart() -> None:
    there = platform("b", qemu=9001000)
    (old,) = blockers(replace(NEEDS, machine="pc-q35-2.4"), there)
    assert "no longer" in old.what
    (foreign,) = blockers(replace(NEEDS, machine="pc-q35-rhel9.2.0"), there)
    assert "another distribution" in foreign.what
    assert "install the QEMU there that pc-q35-rhel9.2.0 comes from" in foreign.cure


def test_two_digit_versions_are_numbers_and_not_text() -> None:
    there = with_offer(platform("b", qemu=2012000), machines=("pc-q35-2.9", "pc-q35-2.11"))
    (found, *_) = blockers(replace(OFF, machine="pc-q35-2.12"), there)
    assert "give the VM pc-q35-2.11" in found.cure


@pytest.mark.parametrize(("qemu", "blocked"), [(7002018, False), (7001000, True), (6002000, True), (8000000, False)])
def test_the_state_of_a_running_guest_does_not_go_to_an_older_release_of_qemu(qemu: int, blocked: bool) -> None:  # noqa: FBT001
    there = with_offer(platform("b", qemu=qemu), machines=("pc-q35-7.2",))
    assert any("is not sure to load" in one.what for one in blockers(NEEDS, there)) is blocked
    assert blockers(OFF, there) == [], "a VM that is off has no state"


def test_an_older_libvirt_is_a_note() -> None:
    there = platform("b", libvirt=8009000)
    assert blockers(NEEDS, there) == []
    (note,) = notes(NEEDS, there)
    assert "libvirt 8.9.0, older than 9.0.0" in note.what


def test_a_kvm_guest_needs_a_host_with_kvm() -> None:
    there = with_offer(platform("b"), guests=Guests("qemu", "x86_64"))
    (found,) = blockers(NEEDS, there)
    assert "b has no x86_64 KVM guests" in found.what
    assert "firmware" in found.cure


def test_another_architecture_needs_another_emulator() -> None:
    needs = replace(NEEDS, guests=Guests("qemu", "aarch64"))
    (found,) = blockers(needs, platform("b"))
    assert "install QEMU for aarch64" in found.cure


def test_where_libvirt_compares_no_cpus_it_says_so() -> None:
    arm = Guests("kvm", "aarch64")
    there = replace(platform("b"), offers=(Offer(arm, Cpu(), (), ("virt-7.2",), comparable=False),))
    needs = replace(NEEDS, guests=arm, machine="virt-7.2", mode=CpuMode.PASSTHROUGH, cpu=Cpu())
    assert blockers(needs, there) == []
    assert "cannot tell" in notes(needs, there)[0].what


def test_every_finding_has_a_cure() -> None:
    worst = platform("b", ("pni",), vendor="Intel", qemu=5002000, libvirt=7000000)
    found = platform_findings(replace(NEEDS, mode=CpuMode.PASSTHROUGH, forbidden=("pni",)), worst)
    assert len(found) == 7
    assert all(one.cure for one in found)
