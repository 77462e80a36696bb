"""Processor compatibility over two toy hosts: check, baseline, limit, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vmferry.errors import (
    BadCpuXml,
    CpuUnfit,
    HostRefused,
    NoGuestsOfKind,
    NoSuchCpu,
    NoSuchVm,
    NotPersistent,
    VendorsDiffer,
    VmBusy,
)
from vmferry.hosts.libvirt import cpu_xml
from vmferry.hosts.simulator.cpu_models import EPYC, platform
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.hosts.simulator.world import Machine, add_machine
from vmferry.manager.fleet.cpu_compatibility import LEVELS, CpuCompatibility
from vmferry.model import FencingToken, Power
from vmferry.model.processors import CpuLimited, CpuLimitRequest, CpuMode, Guests

UUID = "11111111-2222-3333-4444-555555555555"
OLD = ("cx16", "lahf_lm", "pni", "popcnt", "sse4.1", "sse4.2", "ssse3")
NEW = (*EPYC, "avx512f")


class Hosts:
    """Two hosts by name, each a world of its own."""

    def __init__(self, **worlds: World) -> None:
        self.worlds = worlds

    def open(self, connect: str, token: FencingToken | None = None) -> SimulatedHost:
        host = SimulatedHost(InMemory(self.worlds[connect]), token)
        host.name = connect
        return host


def world(name: str, features: Sequence[str], vendor: str = "AMD") -> World:
    return World(platform=platform(name, features, vendor))


@pytest.fixture
def hosts() -> Hosts:
    """`new` has a VM that runs with its host's CPU; `old` lacks AVX."""
    made = Hosts(new=world("new", NEW), old=world("old", OLD), intel=world("intel", NEW, "Intel"))
    add_machine(made.worlds["new"], "web", UUID, {"vda": ((Path("/san1/a"), "raw"),)})
    return made


@pytest.fixture
def free(hosts: Hosts) -> Iterator[CpuCompatibility]:
    yield CpuCompatibility(hosts, lambda _uuid: None)
    assert all(one.violations == [] for one in hosts.worlds.values())


def machine(hosts: Hosts) -> Machine:
    return hosts.worlds["new"].machines[UUID]


def limit(processors: CpuCompatibility, to: str, *others: str, xml: str = "") -> CpuLimited:
    return processors.limit(CpuLimitRequest("web", "new", to, others, xml))


def start(hosts: Hosts) -> None:
    """Shut the VM down and start it: it has the CPU of its definition."""
    machine(hosts).processor.live = None


def test_a_vm_can_run_on_its_own_host(free: CpuCompatibility) -> None:
    assert free.check("web", "new", "new").possible


def test_a_host_that_lacks_features_is_refused_with_their_names(free: CpuCompatibility) -> None:
    check = free.check("web", "new", "old")
    assert not check.possible
    assert check.missing == ("avx", "avx2", "avx512f")


def test_the_cure_that_a_check_names_makes_the_vm_able_to_run_there(hosts: Hosts, free: CpuCompatibility) -> None:
    assert "--to baseline --host old" in free.check("web", "new", "old").findings[0].cure
    limited = limit(free, "baseline", "old")
    assert limited.waits
    assert limited.loses == ("avx", "avx2", "avx512f")
    assert not free.check("web", "new", "old").possible, "it still runs with its former CPU"
    start(hosts)
    assert free.check("web", "new", "old").possible
    assert free.check("web", "new", "new").possible


def test_a_limit_is_taken_back(hosts: Hosts, free: CpuCompatibility) -> None:
    before = (machine(hosts).processor.mode, machine(hosts).processor.xml)
    limit(free, "x86-64-v2")
    limit(free, "baseline", "old")
    assert machine(hosts).processor.mode is CpuMode.CUSTOM
    assert limit(free, "none").changed
    assert (machine(hosts).processor.mode, machine(hosts).processor.xml) == before
    assert not limit(free, "none").changed, "there is nothing more to give back"


def test_of_a_vm_that_is_off_a_limit_holds_at_once(hosts: Hosts, free: CpuCompatibility) -> None:
    machine(hosts).live = None
    limited = limit(free, "x86-64-v2")
    assert not limited.waits
    assert limited.loses == ("avx", "avx2", "avx512f"), "those that it would have been started with"
    back = limit(free, "none")
    assert back.gains == ("avx", "avx2", "avx512f")


def test_a_limit_that_a_host_cannot_give_changes_nothing(hosts: Hosts, free: CpuCompatibility) -> None:
    with pytest.raises(CpuUnfit, match=r"new cannot give web the CPU x86-64-v3: it lacks abm, aes, .*choose a lower"):
        limit(free, "x86-64-v3")
    with pytest.raises(CpuUnfit, match="old cannot give web the CPU EPYC: it lacks avx, avx2"):
        limit(free, "EPYC", "old")
    assert machine(hosts).processor.limited_to == ""


def test_a_limit_to_an_unknown_model_says_what_there_is(free: CpuCompatibility) -> None:
    with pytest.raises(NoSuchCpu, match="knows no CPU model Zen9: give baseline, x86-64-v2"):
        limit(free, "Zen9")


def test_a_cpu_of_ones_own_is_checked_like_any_other(hosts: Hosts, free: CpuCompatibility) -> None:
    limit(free, "mine.xml", xml=cpu_xml.build("qemu64", ["avx"], ["svm"]))
    assert machine(hosts).processor.limited_to == "mine.xml"
    with pytest.raises(CpuUnfit, match="sha-ni"):
        limit(free, "mine.xml", xml=cpu_xml.build("qemu64", ["sha-ni"], ["svm"]))
    with pytest.raises(BadCpuXml):
        limit(free, "mine.xml", xml="<domain/>")


def test_a_vm_that_is_being_moved_is_left_alone(hosts: Hosts) -> None:
    def busy(uuid: str) -> None:
        raise VmBusy(vm=uuid, job="abcd2345")

    with pytest.raises(VmBusy):
        limit(CpuCompatibility(hosts, busy), "x86-64-v2")
    assert machine(hosts).processor.limited_to == ""


def test_a_transient_vm_has_nothing_to_limit(hosts: Hosts, free: CpuCompatibility) -> None:
    machine(hosts).definition = None
    with pytest.raises(NotPersistent, match="virsh define"):
        limit(free, "x86-64-v2")


def test_a_vm_that_is_not_there_is_said_so(free: CpuCompatibility) -> None:
    with pytest.raises(NoSuchVm):
        free.check("nobody", "new", "old")


def test_a_baseline_is_what_all_hosts_have(free: CpuCompatibility) -> None:
    found = free.baseline(("new", "old"))
    assert found.hosts == ("new", "old")
    assert str(found.guests) == "x86_64 KVM"
    assert set(found.cpu.features) == set(OLD)


def test_of_two_vendors_there_is_none(free: CpuCompatibility) -> None:
    with pytest.raises(VendorsDiffer, match="new has AMD; intel has Intel"):
        free.baseline(("new", "intel"))
    check = free.check("web", "new", "intel")
    assert not check.possible
    assert check.missing == (), "it is not for want of a feature"


def test_hosts_without_such_guests_are_named(free: CpuCompatibility) -> None:
    with pytest.raises(NoGuestsOfKind, match="new has no x86_64 emulated guests, it has x86_64 KVM"):
        free.baseline(("new", "old"), "qemu")


def test_a_baseline_is_found_by_the_host_that_knows_all_the_models(hosts: Hosts) -> None:
    """An older libvirt does not know the model that a newer one names."""

    class Older(SimulatedHost):
        def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> object:  # type: ignore[override]
            raise HostRefused(host=self.name, action="find the common CPU", reason="Unknown CPU model")

    class Mixed(Hosts):
        def open(self, connect: str, token: FencingToken | None = None) -> SimulatedHost:
            plain = super().open(connect, token)
            return Older(InMemory(self.worlds[connect]), token) if connect == "old" else plain

    found = CpuCompatibility(Mixed(**hosts.worlds), lambda _uuid: None).baseline(("old", "new"))
    assert set(found.cpu.features) == set(OLD)


def test_what_libvirt_itself_refuses_is_told_even_if_no_feature_is_missing(hosts: Hosts) -> None:
    class Strange(SimulatedHost):
        def cpu_fit(self, xml: str, guests: Guests) -> object:  # type: ignore[override]
            raise HostRefused(host="new", action="compare a CPU", reason="Unknown CPU feature warp")

    class Mixed(Hosts):
        def open(self, connect: str, token: FencingToken | None = None) -> SimulatedHost:
            return Strange(InMemory(self.worlds[connect]), token)

    check = CpuCompatibility(Mixed(**hosts.worlds), lambda _uuid: None).check("web", "new", "new")
    assert not check.possible
    assert "Unknown CPU feature warp" in check.findings[0].what


def test_each_level_has_all_of_the_one_below() -> None:
    v2, v3, v4 = (set(LEVELS[f"x86-64-v{level}"]) for level in (2, 3, 4))
    assert v2 < v3 < v4


def test_a_vm_that_is_off_and_follows_its_host_can_be_started_anywhere(hosts: Hosts, free: CpuCompatibility) -> None:
    add_machine(hosts.worlds["new"], "off", UUID.replace("1", "9"), {"vda": ((Path("/san1/b"), "raw"),)}, Power.OFF)
    assert free.check("off", "new", "old").possible
