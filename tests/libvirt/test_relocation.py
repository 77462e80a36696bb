"""A running guest and its disks go to another host with storage of its own; the guest is the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import starts
from tests.support.fleets import ManagedLab, managed
from tests.support.guests import MOVING, MakeGuestOn, folder_on
from tests.support.job_states import until_ended, until_step
from tests.support.seen import TWO_DISKS, check_image, nothing_of_ours, of_snapshot, untouched

from vmferry.lab import DiskSpec, GuestSpec, Lab, LabGuest, LabHost, wait_for

pytestmark = pytest.mark.xdist_group("two hosts")  # one process has them both for all of these tests
LEASE = DiskSpec("vdc", storage="shared", format="raw", size_mib=1, lease=True)
LARGE = replace(MOVING, memory_mib=512, touch_mib=448)
"""Its memory takes a second or two to go."""
WRITER = GuestSpec("writer", disks=(*TWO_DISKS, LEASE), rate=100)


@pytest.fixture
def fleet(two_hosts: Lab, tmp_path: Path) -> Iterator[ManagedLab]:
    with managed(two_hosts, tmp_path.name) as managed_lab:
        yield managed_lab


def arrived(fleet: ManagedLab, guest: LabGuest, folder: Path) -> dict[str, Path]:
    """The guest runs on host2 alone and goes on writing; its disks there by target."""
    one, two = fleet.lab.hosts
    assert guest.runs_on() == ["host2"]
    guest.moved_to(two)
    guest.wait_acks(50)
    guest.wait_edges(2)
    guest.stop_writing()
    verdict = guest.verdict()
    assert verdict.clean, verdict
    assert guest.errors() == []
    moved = {
        target: folder / image.name
        for target, image in guest.place.images.items()
        if image.parent.parent.name == "san1"
    }
    stayed = {target: image for target, image in guest.place.images.items() if target not in moved}
    assert guest.images() == {target: str(image) for target, image in (moved | stayed).items()}
    assert [image for target, image in guest.place.images.items() if target in moved and image.exists()] == []
    nothing_of_ours(one.storage("san1") / guest.name, folder)
    assert guest.name not in one.run("virsh", "list", "--all", "--name")
    return moved


def test_a_quick_relocation_carries_disks_snapshots_and_memory_and_loses_nothing(
    fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, WRITER)
    snapshot = of_snapshot(guest.place.images["vda"], "before", TWO_DISKS[0])
    quiet = untouched(guest.place.images["vdb"], "raw", TWO_DISKS[1])
    guest.wait_acks(50)
    folder = folder_on(two, guest)

    ended = fleet.migrate(guest, two, "--path", folder, "--via", "quick", "--max-pause", "60s")

    assert ended.code == 0, ended.out + ended.err
    moved = arrived(fleet, guest, folder)
    assert of_snapshot(moved["vda"], "before", TWO_DISKS[0]) == snapshot
    assert untouched(moved["vdb"], "raw", TWO_DISKS[1]) == quiet
    two.run("virsh", "destroy", guest.name)
    check_image(moved["vda"])
    receipt = fleet.manager.receipt(fleet.manager.jobs()[0]["id"])
    assert receipt["verified"] is True
    assert receipt["technology"] == "quick relocation"
    two.run("virsh", "start", guest.name)
    guest.wait_writing()


def test_a_live_relocation_under_kvm_loses_no_write_and_no_page(fleet: ManagedLab, make_guest_on: MakeGuestOn) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, MOVING)
    guest.wait_acks(20)
    folder = folder_on(two, guest)

    ended = fleet.migrate(guest, two, "--path", folder, "--via", "live")

    assert ended.code == 0, ended.out + ended.err
    arrived(fleet, guest, folder)


def test_the_memory_of_a_guest_that_runs_goes_over_a_slow_link_before_it_stops(
    fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    """Under KVM alone: else it stands from the first byte on."""
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, replace(MOVING, memory_mib=128, touch_mib=72, dirty_mib_s=1))
    guest.wait_acks(20)
    folder = folder_on(two, guest)
    fleet.lab.link("host2").shape("200mbit")
    try:
        ended = fleet.migrate(guest, two, "--path", folder, "--via", "quick", "--max-pause", "60s")
    finally:
        fleet.lab.link("host2").shape(None)

    assert ended.code == 0, ended.out + ended.err
    job = fleet.manager.jobs()[0]["id"]
    arrived(fleet, guest, folder)
    moved = {phase["name"]: phase["bytes"] for phase in fleet.manager.receipt(job)["phases"]}
    assert moved["save memory"] > 72 << 20
    if fleet.manager.job(job)["plan"]["precopy"]:
        assert moved["copy last"] < moved["save memory"] / 2


def test_a_vm_that_is_off_goes_over_the_lan_and_starts_there(fleet: ManagedLab, make_guest_on: MakeGuestOn) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, WRITER)
    guest.wait_acks(50)
    guest.stop_writing()
    one.run("virsh", "destroy", guest.name)
    folder = folder_on(two, guest)

    ended = fleet.migrate(guest, two, "--path", folder)

    assert ended.code == 0, ended.out + ended.err
    moved = {target: folder / guest.place.images[target].name for target in ("vda", "vdb")}
    assert guest.verdict(moved).clean
    guest.moved_to(two)
    two.run("virsh", "start", guest.name)
    guest.wait_writing()
    assert guest.runs_on() == ["host2"]


def test_a_relocation_that_is_cancelled_leaves_the_guest_where_it_was(
    fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, WRITER)
    guest.wait_acks(50)
    folder = folder_on(two, guest)
    job = fleet.detached(guest, two, "--path", folder, "--via", "quick", "--limit", "2MiB", "--max-pause", "60s")
    wait_for(lambda: fleet.manager.step(job) == "CopyBase", "the copy to begin", 120)

    assert fleet.manager.run("job", "cancel", job).code == 0

    wait_for(lambda: fleet.manager.state(job) == "undone", "the job to be undone", 120)
    assert guest.runs_on() == ["host1"]
    guest.wait_acks(50)
    assert list(folder.iterdir()) == []
    assert guest.name not in two.run("virsh", "list", "--all", "--name")
    nothing_of_ours(one.storage("san1") / guest.name, folder)


def test_a_live_relocation_that_is_cancelled_while_its_memory_goes_ends_every_time(
    fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    """libvirt misses the end of one of two mirrors now and then, and waits for it: see hosts/libvirt/migration.py."""
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, LARGE)
    guest.wait_acks(20)
    folder = folder_on(two, guest)
    for _ in range(6):
        job = fleet.detached(guest, two, "--path", folder, "--via", "live")
        until_step(fleet.manager, job, "Migrate")
        asked = fleet.manager.run("job", "cancel", job)
        assert asked.code == 0, asked.err
        assert until_ended(fleet.manager, job) == "undone"
        assert guest.runs_on() == ["host1"]
        guest.wait_acks(20)
        nothing_of_ours(one.storage("san1") / guest.name, folder)
    assert guest.errors() == []


@pytest.mark.parametrize("lost", ["agent", "libvirtd"])
def test_a_live_relocation_goes_on_after_its_destination_was_away(
    fleet: ManagedLab, make_guest_on: MakeGuestOn, lost: str
) -> None:
    """While memory goes, and nothing that was copied is copied again."""
    one, two = fleet.lab.hosts
    agent = fleet.agents["host2"]
    kill, start = (agent.kill, agent.start) if lost == "agent" else (two.kill_libvirtd, two.start_libvirtd)
    guest = make_guest_on(one, LARGE)
    guest.wait_acks(20)
    folder = folder_on(two, guest)
    job = fleet.detached(guest, two, "--path", folder, "--via", "live")
    wait_for(lambda: two.qemu_pid(guest.name) is not None, "QEMU to wait at the destination", 60)
    kill()
    wait_for(lambda: "host2" in str(fleet.manager.job(job)["progress"]), "the job to wait for the host", 60)
    start()
    if lost == "libvirtd":
        starts.follow(fleet.manager, job, two, guest.name)
    goes_on(fleet, guest, folder, job)
    assert fleet.manager.steps(job).count("Migrate") == 1


@pytest.mark.parametrize("via", ["live", "quick"])
def test_a_vm_that_the_destination_half_started_is_told_and_moves_once_libvirtd_is_restarted(
    fleet: ManagedLab, make_guest_on: MakeGuestOn, via: str
) -> None:
    """Its libvirtd holds such a one for starting for good, and would after any number of restarts."""
    two = fleet.lab.host("host2")
    guest, folder, job = killed_in_a_start(fleet, make_guest_on, via, starts.half)
    wait_for(lambda: starts.told(fleet.manager, job, starts.HALF_STARTED), "the job to tell what to do", 60)
    assert guest.runs_on() == (["host1"] if via == "live" else [])
    starts.restart(two)
    goes_on(fleet, guest, folder, job)


@pytest.mark.parametrize("via", ["live", "quick"])
def test_a_vm_whose_qemu_runs_is_not_started_again_because_libvirt_takes_it_for_off(
    fleet: ManagedLab, make_guest_on: MakeGuestOn, via: str
) -> None:
    two = fleet.lab.host("host2")
    guest, folder, job = killed_in_a_start(fleet, make_guest_on, via, starts.forget)
    wait_for(lambda: starts.told(fleet.manager, job, starts.FORGOTTEN), "the job to tell what to do", 60)
    assert starts.FORGOTTEN in fleet.manager.run("--connect", "host2", "vm", "show", guest.name).err
    two.kill_qemu(guest.name)
    goes_on(fleet, guest, folder, job)


def killed_in_a_start(
    fleet: ManagedLab, make_guest_on: MakeGuestOn, via: str, harm: Callable[[LabHost, str], None]
) -> tuple[LabGuest, Path, str]:
    """A guest on its way, its folder and its job, whose destination's libvirtd was killed as it started it."""
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, MOVING)
    guest.wait_acks(20)
    folder = folder_on(two, guest)
    with starts.held(two) as reached:
        job = fleet.detached(guest, two, "--path", folder, "--via", via, "--max-pause", "60s")
        wait_for(reached.exists, "the VM to be started at the destination", 120)
        two.kill_libvirtd()
        harm(two, guest.name)
    two.start_libvirtd()
    return guest, folder, job


def goes_on(fleet: ManagedLab, guest: LabGuest, folder: Path, job: str) -> None:
    """The job ends as if nothing had been, and nothing that was copied is copied again."""
    assert until_ended(fleet.manager, job) == "done", fleet.manager.job(job)["sentence"]
    assert fleet.manager.steps(job).count("CopyBase") == 1
    arrived(fleet, guest, folder)


def test_what_stands_against_a_relocation_is_told_before_the_vm_is_touched(
    fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, WRITER)
    for words, why in (
        (("--path", two.storage("san1") / "no-such"), "does not exist"),
        (("--path", one.storage("san2")), "it lies in no storage of that host"),
        (("--path", two.storage("san2"), "--via", "live"), "without KVM"),
        (("--path", two.storage("san2"), "--via", "lan"), "the VM is running"),
    ):
        ended = fleet.migrate(guest, two, *words)
        assert ended.code == 3, ended.out + ended.err
        assert why in " ".join((ended.out + ended.err).split())
    assert fleet.manager.jobs() == []
    assert guest.name not in two.run("virsh", "list", "--all", "--name")
