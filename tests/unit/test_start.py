"""What a VM needs to be started again, and what a job does where it is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import libvirt
import pytest
from tests.support.worlds import DESTINATION, FAR, UUID, Bench, Scenario, broken

from vmferry import preflight
from vmferry.hosts.libvirt import cpu, domain_xml, start
from vmferry.hosts.simulator.driver import InMemory, Moment, SimulatedHost, World
from vmferry.model import Disk, Image, JobState, Lack, MoveRequest, Power, Technology, Vm
from vmferry.preflight.destination import uses
from vmferry.preflight.moves import Wanted, disk_move

DISK = "<disk type='file' device='{device}'><source file='{at}'{more}/>{below}<target dev='{target}'/></disk>"
GONE = Lack("the kernel /boot/gone", "put it back")
DISC = Lack("the disc /iso/gone.iso in sda", "put it back, or eject it", "sda")


@dataclass
class Libvirtd:
    """What is asked of libvirt."""

    networks: tuple[str, ...] = ()
    secrets: dict[str, bool] = field(default_factory=dict)
    """UUID or usage to whether it has a value."""

    def listAllNetworks(self) -> list[Any]:
        return [_Network(name) for name in self.networks]

    def secretLookupByUUIDString(self, uuid: str) -> Any:
        return self._secret(uuid)

    def secretLookupByUsage(self, _kind: int, usage: str) -> Any:
        return self._secret(usage)

    def _secret(self, known: str) -> Any:
        if known not in self.secrets:
            raise _NoSecret
        return _Secret(self.secrets[known])


@dataclass
class _Network:
    known_as: str

    def name(self) -> str:
        return self.known_as

    def isActive(self) -> bool:
        return True


@dataclass
class _Secret:
    has_value: bool

    def value(self, _flags: int) -> bytes:
        if not self.has_value:
            raise _NoSecret
        return b"x"


class _NoSecret(libvirt.libvirtError):  # type: ignore[misc]  # libvirt has no types
    def __init__(self) -> None:
        Exception.__init__(self)  # libvirt's own asks the library for its last error

    def get_error_code(self) -> int:
        return int(libvirt.VIR_ERR_NO_SECRET)


def lacks(devices: str, *, os: str = "", runs: bool = True, libvirtd: Libvirtd | None = None) -> Sequence[Lack]:
    root = domain_xml.parse(f"<domain><os>{os}</os><devices>{devices}</devices></domain>")
    found = start.of_xml(cast(Any, libvirtd or Libvirtd()), root, name="vm", runs=runs)
    assert all(lack.cure for lack in found)
    return found


def disk(at: Path, device: str = "disk", target: str = "vda", more: str = "", below: str = "") -> str:
    return DISK.format(device=device, at=at, target=target, more=more, below=below)


@pytest.mark.parametrize("device", ("cdrom", "floppy"))
def test_a_disc_that_is_gone_is_named_with_its_drive_and_how_to_eject_it(device: str, tmp_path: Path) -> None:
    disc = tmp_path / "a.iso"
    (lack,) = lacks(disk(disc, device, "sda"))
    assert (lack.what, lack.drive) == (f"the disc {disc} in sda", "sda")
    assert "virsh change-media 'vm' sda --eject" in lack.cure
    disc.touch()
    assert lacks(disk(disc, device, "sda")) == []


@pytest.mark.parametrize("policy", ("optional", "requisite"))
def test_a_disc_that_libvirt_leaves_out_by_itself_is_no_lack(policy: str, tmp_path: Path) -> None:
    assert lacks(disk(tmp_path / "a.iso", "cdrom", more=f" startupPolicy='{policy}'")) == []
    assert lacks(disk(tmp_path / "a.iso", "cdrom", more=" startupPolicy='mandatory'")) != []


def test_a_base_below_a_disk_that_stays_is_looked_for(tmp_path: Path) -> None:
    (top := tmp_path / "top").touch()
    below = f"<backingStore type='file'><source file='{tmp_path}/base'/><backingStore/></backingStore>"
    (lack,) = lacks(disk(top, below=below))
    assert lack.what == f"the image {tmp_path}/base of disk vda"
    assert not lack.drive


def test_variables_that_are_gone_are_named_for_a_vm_that_runs_and_made_anew_for_one_that_is_off(tmp_path: Path) -> None:
    (template := tmp_path / "template").touch()
    os = f"<nvram template='{template}'>{tmp_path}/vars</nvram>"
    (lack,) = lacks("", os=os)
    assert lack.what == f"the firmware's variables {tmp_path}/vars"
    assert lacks("", os=os, runs=False) == []
    template.unlink()
    (lack,) = lacks("", os=os, runs=False)
    assert f"the template {template}" in lack.what


def test_a_network_that_was_stopped_is_named_with_how_to_start_it() -> None:
    interface = "<interface type='network'><source network='lan'/></interface>"
    (lack,) = lacks(interface)
    assert (lack.what, lack.cure) == ("the network lan", "start it: `virsh net-start 'lan'`")
    assert lacks(interface, libvirtd=Libvirtd(("lan",))) == []
    (lack,) = lacks("<interface type='bridge'><source bridge='nobr7'/></interface>")
    assert lack.what == "the bridge nobr7"


@pytest.mark.parametrize("named", ("uuid='S'", "usage='S'"))
def test_a_secret_that_is_gone_or_was_forgotten_with_libvirtds_restart_is_named(named: str) -> None:
    device = f"<disk><source><encryption format='luks'><secret type='passphrase' {named}/></encryption></source></disk>"
    for libvirtd in (Libvirtd(), Libvirtd(secrets={"S": False})):
        (lack,) = lacks(device, libvirtd=libvirtd)
        assert lack.what == "the secret S, or its value"
    assert lacks(device, libvirtd=Libvirtd(secrets={"S": True})) == []


def test_a_kernel_and_a_socket_of_the_live_vm_are_looked_for(tmp_path: Path) -> None:
    socket = f"<channel type='unix'><source mode='connect' path='{tmp_path}/s'/></channel>"
    found = [lack.what for lack in lacks(socket, os=f"<kernel>{tmp_path}/k</kernel>")]
    assert found == [f"the kernel {tmp_path}/k", f"the channel's socket {tmp_path}/s"]
    libvirts = "<channel type='unix'><source mode='connect' path='/run/libvirt/qemu/channel/1-vm/x'/></channel>"
    assert lacks(libvirts) == []


def test_only_discs_whose_files_are_gone_are_taken_out(tmp_path: Path) -> None:
    (there := tmp_path / "there.iso").touch()
    gone = tmp_path / "gone.iso"
    devices = disk(there, "cdrom", "sda") + disk(gone, "cdrom", "sdb") + disk(gone, "disk", "vda")
    root = domain_xml.parse(f"<domain><devices>{devices}</devices></domain>")
    assert start.leave_out_gone(root) == (f"{gone} (sdb)",)
    assert [domain_xml.source_where(each) for each in domain_xml.disks(root)] == [there, None, gone]


@pytest.mark.parametrize("gone", ("kernel", "initrd"))
def test_a_kernel_that_is_gone_is_left_out_with_all_that_belongs_to_it(gone: str, tmp_path: Path) -> None:
    for name in {"kernel", "initrd"} - {gone}:
        (tmp_path / name).touch()
    os = f"<type>hvm</type><kernel>{tmp_path}/kernel</kernel><initrd>{tmp_path}/initrd</initrd><cmdline>x</cmdline>"
    root = domain_xml.parse(f"<domain><os>{os}</os><devices/></domain>")
    assert start.needed_to_load(start.of_xml(cast(Any, Libvirtd()), root, name="vm", runs=True)) == []
    assert start.leave_out_gone(root) == (f"the {gone} {tmp_path}/{gone}",)
    assert [each.tag for each in root.iterfind("os/*")] == ["type"]
    whole = domain_xml.parse(f"<domain><os><kernel>{tmp_path}</kernel><cmdline>x</cmdline></os><devices/></domain>")
    assert start.leave_out_gone(whole) == ()
    assert [each.tag for each in whole.iterfind("os/*")] == ["kernel", "cmdline"]


# -- what a job does


@pytest.mark.parametrize("technology", (Technology.QUICK, Technology.QUICK_RELOCATION, Technology.LIVE_RELOCATION))
@pytest.mark.parametrize("end", ("here", "there"))
def test_what_vanished_while_a_job_copied_undoes_it_before_the_guest_stands(technology: Technology, end: str) -> None:
    bench = Bench(Scenario(technology, Power.RUNNING))
    stood = []

    def hook(moment: Moment, world: World) -> None:
        if moment.call == "promote":
            world.gone = [GONE] if end == "here" else []
            world.at(FAR).lacks = [GONE] if end == "there" and bench.scenario.relocates else []
        if moment.call in ("save", "migrate"):
            stood.append(moment.call)

    bench.hook = hook
    ends = bench.run()
    vanished = end == "here" or bench.scenario.relocates
    assert ends is (JobState.UNDONE if vanished else JobState.DONE)
    assert bool(stood) is not vanished
    assert broken(bench, ends) == []


@pytest.mark.parametrize("technology", (Technology.QUICK, Technology.QUICK_RELOCATION))
def test_what_vanished_while_the_guest_stood_is_waited_for_and_the_guest_runs_then(technology: Technology) -> None:
    bench = Bench(Scenario(technology, Power.RUNNING))
    told: list[str] = []

    def hook(moment: Moment, world: World) -> None:
        if moment.call == "save" and moment.when == "after":
            world.gone = [GONE]
            world.at(FAR).gone = [GONE]

    def heard(why: str) -> None:
        told.append(why)
        if len(told) == 2:
            bench.world.gone = []

    bench.hook, bench.heard = hook, heard
    assert bench.run() is JobState.UNDONE
    assert "this is not there: the kernel /boot/gone; its memory is kept in" in told[0]
    assert "put it back, then the guest goes on by itself" in told[0]
    assert bench.stuck == []
    assert broken(bench, JobState.UNDONE) == []


@pytest.mark.parametrize("vanishes", ("save", "copy end"))
def test_a_disc_that_vanished_while_the_guest_stood_stops_nothing_and_is_told(vanishes: str) -> None:
    bench = Bench(Scenario(Technology.QUICK, Power.RUNNING))

    def hook(moment: Moment, world: World) -> None:
        if moment.call == vanishes and moment.when == "after" and world.machine(UUID).live is None:
            world.gone = [DISC]

    bench.hook = hook
    assert bench.run() is JobState.DONE
    assert bench.known["ejected"] == [DISC.what]


# -- what preflight makes of it


def findings(technology: Technology, *, gone: Sequence[Lack], via: str, nvram: bool = False) -> list[tuple[str, str]]:
    bench = Bench(Scenario(technology, Power.OFF if technology is Technology.OFFLINE else Power.RUNNING))
    world = bench.world
    world.gone = list(gone)
    if nvram:
        world.machine(UUID).nvram = Path("/fast/gone.fd")
    ground = InMemory(world)
    host = SimulatedHost(ground)
    request = MoveRequest("guest", "memory", path=DESTINATION, via=via, to=FAR if bench.scenario.relocates else None)
    there = SimulatedHost(ground, name=FAR) if bench.scenario.relocates else host
    plan = preflight.plan(request, host, there, {})
    return [(f.severity.value, f.cure) for f in plan.findings if "is not there" in f.what or "are not there" in f.what]


def test_where_memory_is_saved_what_is_gone_stands_against_the_move_and_else_it_is_told() -> None:
    way_out = f"{GONE.cure}, or use --via live"
    assert findings(Technology.QUICK, gone=[GONE], via="quick") == [("blocker", way_out)]
    assert findings(Technology.LIVE, gone=[GONE], via="live") == [("note", GONE.cure)]
    assert findings(Technology.OFFLINE, gone=[GONE], via="offline") == [("note", GONE.cure)]
    assert findings(Technology.QUICK_RELOCATION, gone=[DISC], via="quick") == []
    assert findings(Technology.QUICK_RELOCATION, gone=[GONE], via="quick") == [("blocker", way_out)]


def test_variables_that_a_vm_that_is_off_has_lost_are_told() -> None:
    ((severity, cure),) = findings(Technology.OFFLINE, gone=[], via="offline", nvram=True)
    assert (severity, "put them back" in cure) == ("note", True)


@pytest.mark.parametrize(
    ("label", "user"),
    [("+64055:+64055", (64055, 64055)), ("1000:107", (1000, 107)), ("+0:+0", None), ("", None), ("nobody", None)],
)
def test_qemus_user_is_read_where_it_is_another_one(
    label: str, user: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told:
        def getCapabilities(self) -> str:
            models = "<secmodel><model>apparmor</model><baselabel type='kvm'>x</baselabel></secmodel>"
            models += f"<secmodel><model>dac</model><baselabel type='kvm'>{label}</baselabel></secmodel>"
            return f"<capabilities><host>{models}</host></capabilities>"

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cpu.other_user(cast(Any, Told())) == user
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert cpu.other_user(cast(Any, Told())) is None


@pytest.mark.parametrize(
    ("virtual", "cache", "asked"), [(374784, "none", (374784,)), (374784, "", ()), (8192, "none", ())]
)
def test_only_raw_disks_that_may_end_within_a_sector_are_opened_for_it(
    virtual: int, cache: str, asked: tuple[int, ...]
) -> None:
    image = Image(Path("/fast/a.img"), "raw", virtual, virtual)
    disk = Disk("vda", (image,), cache=cache)
    vm = Vm("vm", UUID, Power.RUNNING, persistent=True, memory_bytes=1 << 30, disks=(disk,))
    move = disk_move(vm, Wanted(disk, Path("/slow")))
    (use,) = uses(vm, [move], (), Technology.QUICK).values()
    assert use.raw_bytes == asked
    assert use.direct is (cache == "none")
    assert use.largest_bytes == 1 << 30
    assert use.longest_name_bytes > len("a.img.vmferry-abcd2345.r0.qcow2.part")
