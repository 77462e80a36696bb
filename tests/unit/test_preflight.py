"""What preflight finds: every blocker with a cure, and why a technology is not possible."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.worlds import make_world

from vmferry.errors import FoldersRefused, PathRefused, UsageError
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost
from vmferry.hosts.simulator.world import File
from vmferry.model import (
    SAME_HOST,
    Disk,
    DiskMove,
    FileMove,
    Finding,
    Folder,
    Image,
    MoveRequest,
    Power,
    Severity,
    Technology,
    Vm,
)
from vmferry.preflight import plan as planned
from vmferry.preflight.destination import of_allocation
from vmferry.preflight.findings import Ends, no_precopy, of_disks, of_images, of_memory, of_pause, stays
from vmferry.preflight.moves import Wanted, disk_move, file_moves
from vmferry.preflight.storages import check_served
from vmferry.preflight.technologies import choose, ruled_out, ruled_out_apart, runnable, way_out

IMAGE = Image(Path("/san1/a.qcow2"), "qcow2", 1 << 30, 1 << 20)
DISK = Disk("vda", (IMAGE,))
VM = Vm("vm", "uuid", Power.RUNNING, persistent=True, memory_bytes=1 << 30, disks=(DISK,))


@pytest.mark.parametrize(
    "disk",
    [
        replace(DISK, source="vhostuser"),
        replace(DISK, source="network", chain=()),
        replace(DISK, device="lun"),
        replace(DISK, transient=True),
        replace(DISK, block_job="copy"),
        replace(DISK, encrypted=True, secret_missing="fd2e1a0c-0000-4000-8000-000000000001"),
        replace(DISK, chain=(replace(IMAGE, virtual_bytes=0),)),
        replace(DISK, chain=(replace(IMAGE, data_file="/san1/a.data"),)),
        replace(DISK, chain=(replace(IMAGE, backing="nbd://other/x", backing_format="raw"),)),
        replace(DISK, chain=(replace(IMAGE, backing="/san1/base", backing_format=None),)),
        replace(DISK, chain=(replace(IMAGE, backing='json:{"driver": "nbd"}', backing_format="raw"),)),
    ],
)
def test_a_disk_that_cannot_be_moved_is_a_blocker_with_a_cure(disk: Disk) -> None:
    found = of_disks(VM, [disk])
    assert found
    assert all(f.severity is Severity.BLOCKER and f.cure for f in found)


def test_an_ordinary_disk_has_no_finding() -> None:
    assert of_disks(VM, [DISK]) == []
    assert ruled_out(VM, [DISK], ()) == ruled_out(VM, [DISK], [])
    assert choose("auto", ruled_out(VM, [DISK], ())) == (Technology.LIVE, [])


def test_a_vm_that_is_off_has_no_memory_to_be_saved_slowly() -> None:
    vm = replace(VM, precopy=False)
    assert no_precopy(vm, Technology.QUICK, "")
    assert no_precopy(replace(vm, power=Power.OFF), Technology.QUICK, "") == []


@pytest.mark.parametrize(
    ("vm", "disk", "files", "chosen"),
    [
        (VM, DISK, (), Technology.LIVE),
        (replace(VM, power=Power.PAUSED), DISK, (), Technology.LIVE),
        (replace(VM, power=Power.OFF), DISK, (), Technology.OFFLINE),
        (replace(VM, power=Power.OFF), replace(DISK, encrypted=True), (), Technology.OFFLINE),
        (VM, replace(DISK, readonly=True), (), Technology.QUICK),
        (VM, replace(DISK, device="cdrom"), (), Technology.QUICK),
        (VM, DISK, (FileMove(Path("/san1/vars.fd"), Path("/san2/vars.fd")),), Technology.QUICK),
        (replace(VM, no_save="a host device is passed through to it"), DISK, (), Technology.LIVE),
    ],
)
def test_auto_takes_the_highest_that_is_possible(
    vm: Vm, disk: Disk, files: tuple[FileMove, ...], chosen: Technology
) -> None:
    assert choose("auto", ruled_out(vm, [disk], files)) == (chosen, [])


@pytest.mark.parametrize(
    ("vm", "disk"),
    [
        (VM, replace(DISK, encrypted=True)),
        (VM, replace(DISK, shareable=True)),
        (replace(VM, no_save="a host device is passed through to it"), replace(DISK, readonly=True)),
    ],
)
def test_where_nothing_is_possible_every_reason_is_said(vm: Vm, disk: Disk) -> None:
    _, blockers = choose("auto", ruled_out(vm, [disk], ()))
    assert {Technology(b.what.split()[0].lower()) for b in blockers} == {*SAME_HOST}
    assert all(isinstance(b, Finding) and b.cure for b in blockers)


def test_a_technology_asked_for_by_name_says_why_not() -> None:
    chosen, blockers = choose("offline", ruled_out(VM, [DISK], ()))
    assert chosen is Technology.OFFLINE
    assert "running" in blockers[0].what


def test_a_technology_asked_for_where_none_is_possible_names_a_cure_that_helps() -> None:
    encrypted = replace(DISK, encrypted=True)
    for via in ("live", "quick"):
        _, blockers = choose(via, ruled_out(VM, [encrypted], ()))
        assert ["shut the VM down" in b.cure for b in blockers] == [True]
    assert choose("auto", ruled_out(replace(VM, power=Power.OFF), [encrypted], ())) == (Technology.OFFLINE, [])


def test_a_secret_that_libvirt_lacks_is_named_in_the_finding_and_in_its_cure() -> None:
    (found,) = of_disks(VM, [replace(DISK, encrypted=True, secret_missing="fd2e1a0c")])
    assert "fd2e1a0c" in found.what
    assert "virsh secret-set-value fd2e1a0c" in found.cure


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (DISK, None),
        (replace(DISK, chain=()), "empty"),
        (replace(DISK, device="cdrom"), "cdrom"),
        (replace(DISK, readonly=True), "read-only"),
        (replace(DISK, shareable=True), "shareable"),
    ],
)
def test_what_path_alone_does_not_move_says_why(disk: Disk, why: str | None) -> None:
    assert (stays(disk) is None) if why is None else (why in str(stays(disk)))


def move_of(disk: Disk, **given: object) -> DiskMove:
    return disk_move(VM, Wanted(disk, **({"to": Path("/san2")} | given)))  # type: ignore[arg-type]


def test_a_chain_names_its_new_places_and_a_relative_name_that_stays_true_is_left() -> None:
    base = Image(Path("/san1/base.qcow2"), "qcow2", 1 << 30, 1 << 20)
    absolute = move_of(Disk("vda", (replace(IMAGE, backing="/san1/base.qcow2"), base)))
    relative = move_of(Disk("vda", (replace(IMAGE, backing="base.qcow2"), base)))
    assert [i.backing for i in absolute.images] == ["/san2/base.qcow2", None]
    assert [i.backing for i in relative.images] == [None, None]
    assert [i.destination for i in absolute.images] == [Path("/san2/a.qcow2"), Path("/san2/base.qcow2")]


def test_nvram_moves_only_from_a_folder_that_is_left() -> None:
    moves = (move_of(DISK),)
    inside = replace(VM, nvram=Path("/san1/vars.fd"))
    outside = replace(VM, nvram=Path("/var/lib/libvirt/qemu/nvram/vars.fd"))
    assert file_moves(inside, moves, Path("/san2")) == (FileMove(Path("/san1/vars.fd"), Path("/san2/vars.fd")),)
    assert file_moves(outside, moves, Path("/san2")) == ()


@pytest.mark.parametrize(
    ("technology", "least_s", "blockers"),
    [
        (Technology.QUICK, 2.01, 1),
        (Technology.QUICK, 2.0, 0),
        (Technology.LIVE, 9.0, 0),
        (Technology.OFFLINE, 0.0, 0),
    ],
)
def test_a_pause_that_can_never_be_short_enough_is_a_blocker(
    technology: Technology, least_s: float, blockers: int
) -> None:
    found = of_pause(VM, technology, least_s, 2.0, "use --via live", learned=False)
    assert [f.severity for f in found] == [Severity.BLOCKER] * blockers
    assert all("--max-pause 3s" in f.cure for f in found)
    assert not any("earlier moves" in f.what for f in found)


def test_a_pause_that_earlier_moves_have_shown_to_be_too_long_says_so() -> None:
    [found] = of_pause(VM, Technology.QUICK, 5.0, 2.0, "", learned=True)
    assert "5.0 s at least, as earlier moves from its host have shown" in found.what


def test_checkpoints_keep_a_running_vm_from_another_host_and_one_that_is_off_takes_them_along() -> None:
    backed_up = replace(VM, checkpoints=("monday",))
    ruled = {r.technology: r.why for r in ruled_out_apart(backed_up, [DISK])}
    assert "monday" in ruled[Technology.QUICK_RELOCATION][0]
    assert "monday" in ruled[Technology.LIVE_RELOCATION][0]
    assert Technology.LAN not in {r.technology for r in ruled_out_apart(replace(backed_up, power=Power.OFF), [DISK])}


def test_memory_that_libvirt_keeps_for_the_next_start_stands_against_every_move() -> None:
    (found,) = of_memory(replace(VM, power=Power.OFF, managed_save=True), runnable=True)
    assert found.severity is Severity.BLOCKER
    assert "virsh managedsave-remove 'vm'" in found.cure
    assert of_memory(VM, runnable=True) == []


@pytest.mark.parametrize("apart", (False, True))
@pytest.mark.parametrize(
    "vm",
    [
        VM,
        replace(VM, precopy=False),
        replace(VM, no_save="QEMU says: it cannot"),
        replace(VM, checkpoints=("monday",)),
    ],
)
@pytest.mark.parametrize("disk", [DISK, replace(DISK, readonly=True), replace(DISK, encrypted=True)])
@pytest.mark.parametrize("beside", (False, True))
def test_no_cure_names_a_way_that_the_same_plan_calls_impossible(
    *, vm: Vm, disk: Disk, beside: bool, apart: bool
) -> None:
    files = [FileMove(Path("/san1/vars.fd"), Path("/san2/vars.fd"))] if beside else []
    ruled = ruled_out_apart(vm, [disk]) if apart else ruled_out(vm, [disk], files)
    live = Technology.LIVE_RELOCATION if apart else Technology.LIVE
    quick = Technology.QUICK_RELOCATION if apart else Technology.QUICK
    out = way_out(ruled, apart=apart)
    found = [
        *of_pause(vm, quick, 9.0, 2.0, out, learned=False),
        *no_precopy(replace(vm, precopy=False), quick, out),
    ]
    named = any("--via live" in finding.cure for finding in found)
    assert named is (live not in {r.technology for r in ruled})
    assert all(finding.cure and not finding.cure.startswith(",") for finding in found)


@pytest.mark.parametrize(
    ("disk", "cure"), [(DISK, "move it while it runs"), (replace(DISK, encrypted=True), "shut it")]
)
def test_memory_that_libvirt_keeps_is_not_said_to_move_while_it_runs_where_it_cannot(disk: Disk, cure: str) -> None:
    (found,) = of_memory(replace(VM, power=Power.OFF, managed_save=True), runnable=runnable([disk]))
    assert cure in found.cure


@pytest.mark.parametrize(
    ("image", "noted"),
    [
        (replace(IMAGE, format="raw", virtual_bytes=1 << 20, data_bytes=1 << 20), True),
        (replace(IMAGE, format="raw", virtual_bytes=1 << 20, data_bytes=(1 << 20) - 4096), False),
        (replace(IMAGE, virtual_bytes=1 << 20, data_bytes=2 << 20), False),
        (replace(IMAGE, format="raw", virtual_bytes=1 << 20, data_bytes=1 << 20, volume=True), False),
    ],
)
def test_storage_that_was_allocated_beforehand_is_told_of_with_a_cure(image: Image, *, noted: bool) -> None:
    move = disk_move(VM, Wanted(replace(DISK, chain=(image,)), Path("/san2")))
    found = of_allocation([move])
    assert bool(found) is noted
    assert all("fallocate -l 1048576 '/san2/" in finding.cure for finding in found)


@pytest.mark.parametrize(("path", "says"), [("/fast/file.img", "is a file"), ("/no such", "mkdir -p '/no such'")])
def test_a_destination_that_is_no_folder_is_said_once_with_a_cure_that_cures(
    path: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(Power.RUNNING)
    world.files[Path("/fast/file.img")] = File()
    host = SimulatedHost(InMemory(world))
    known = host.folder

    def folder(at: Path) -> Folder:
        return replace(known(at), exists=str(at) != path)

    monkeypatch.setattr(host, "folder", folder)
    found = planned(MoveRequest("guest", "memory", path=Path(path)), host, host, {}).blockers
    [said] = [f"{finding.what}; {finding.cure}" for finding in found if path in finding.what]
    assert says in said


@pytest.mark.parametrize("folder", ("/fast/a\tb", "/fast/a\nb", "/fast/" + "a" * 300))
def test_a_folder_that_no_definition_keeps_or_no_file_system_has_is_refused(folder: str) -> None:
    host = SimulatedHost(InMemory(make_world(Power.RUNNING)))
    with pytest.raises(UsageError, match="nothing can be moved to"):
        planned(MoveRequest("guest", "memory", path=Path(folder)), host, host, {})


def test_an_image_whose_name_no_definition_keeps_is_refused_with_its_name() -> None:
    disk = replace(DISK, chain=(replace(DISK.chain[0], path=Path("/san1/a\tb.img")),))
    host = SimulatedHost(InMemory(make_world(Power.RUNNING)))
    found = of_images(Ends(host, host), VM, [move_of(disk)], [])
    assert any("'a\\tb.img' cannot go along" in finding.what for finding in found)


class Confined(SimulatedHost):
    """A host behind an agent that serves only what lies below /served."""

    def exists(self, path: Path) -> bool:
        if not path.is_relative_to("/served"):
            raise PathRefused(host=self.name, path=path, reason="it lies in no storage of that host")
        return super().exists(path)


@pytest.mark.parametrize("iso", ("copy", "eject"))
def test_each_folder_that_an_agent_does_not_serve_is_named_at_once_with_its_command(iso: str) -> None:
    disc = replace(DISK, target="sda", device="cdrom", chain=(replace(IMAGE, path=Path("/isos/a.iso")),))
    chain = tuple(replace(IMAGE, path=Path(p)) for p in ("/vms/a.qcow2", "/vms/old/b.qcow2", "/served/t/c.qcow2"))
    vm = replace(VM, disks=(replace(DISK, chain=chain), disc))
    one, two = (Confined(InMemory(make_world()), None, None, 0.0, name) for name in ("host1", "host2"))
    request = MoveRequest(vm.name, "host1", path=Path("/new it"), to="host2", iso=iso)
    with pytest.raises(FoldersRefused) as refused:
        check_served(Ends(one, two), vm, request)
    commands = re.findall("`(.*?)`", str(refused.value))
    wanted = [("host1", "/isos")] * (iso == "copy") + [("host1", "/vms"), ("host2", "'/new it'")]
    assert commands == [f"vmferry storage add NAME --host {host} --path {path}" for host, path in wanted]


def test_nothing_is_said_of_folders_that_are_served() -> None:
    served = tuple(replace(IMAGE, path=Path(f"/served/{name}.qcow2")) for name in "ab")
    vm = replace(VM, disks=(replace(DISK, chain=served),))
    host = Confined(InMemory(make_world()), None, None, 0.0, "host1")
    check_served(Ends(host, host), vm, MoveRequest(vm.name, "host1", path=Path("/served/new")))
    check_served(Ends(host, host), vm, MoveRequest(vm.name, "host1", disks={"vda": Path("/served/new")}))
