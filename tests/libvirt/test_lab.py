"""The lab itself, on real QEMU guests: what it promises to the tests that stand on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.support.guests import assert_nothing_is_left

from vmferry.errors import LabPlaceUnfit, LabRunning, NoLab
from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, StorageSpec, commands, wait_for
from vmferry.lab.guests.verdict import BLOCK
from vmferry.lab.hosts.processes import lab_processes
from vmferry.lab.programs import run

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
QCOW2, RAW = DiskSpec("vda", internal_snapshot="before"), DiskSpec("vdb", storage="san2", format="raw", data_mib=8)
TWO_DISKS = GuestSpec("wéb 1", disks=(QCOW2, RAW))
ONE_DISK = GuestSpec("one", disks=(DiskSpec("vda", format="raw", size_mib=64, data_mib=4, region_mib=16),))
SMALL = (StorageSpec("san1", "ext4", 256),)


def test_every_acknowledged_write_is_on_the_disks_and_nothing_else_is_written(make_guest: MakeGuest) -> None:
    guest = make_guest(TWO_DISKS)
    outside = RAW.region[0] << 20
    before = guest.place.images["vdb"].read_bytes()[:outside]
    guest.wait_acks(40)
    guest.stop_writing()
    verdict = guest.verdict()
    assert verdict.clean, verdict
    assert verdict.acknowledged >= 40
    assert {ack.disk for ack in guest.acks()} == {"vda", "vdb"}
    assert guest.place.images["vdb"].read_bytes()[:outside] == before
    assert "before" in run("qemu-img", "snapshot", "-U", "-l", guest.place.images["vda"])
    assert guest.errors() == []


def test_the_verdict_finds_a_write_that_was_taken_away(make_guest: MakeGuest) -> None:
    guest = make_guest(ONE_DISK)
    guest.wait_acks(20)
    guest.stop_writing()
    image = guest.place.images["vda"]
    with image.open("r+b") as disk:
        disk.seek(guest.acks()[-1].place * BLOCK)
        disk.write(bytes(BLOCK))
    verdict = guest.verdict()
    assert (verdict.lost, verdict.torn) == (1, 0)


def test_a_power_failure_loses_no_acknowledged_write(lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf) -> None:
    guest = make_guest(TWO_DISKS)
    guest.command("rate 0")
    guest.wait_acks(100)
    lab.kill_qemu(guest.name)
    assert guest.verdict().clean, guest.verdict()
    wait_for(lambda: not domain_of(guest).isActive(), "libvirt to see the end")
    domain_of(guest).create()
    guest.wait_writing()
    guest.stop_writing()
    assert guest.verdict().clean, guest.verdict()


def test_the_guests_own_clock_tells_how_long_it_was_stopped(make_guest: MakeGuest, domain_of: DomainOf) -> None:
    guest = make_guest(ONE_DISK)
    guest.wait_edges(2)
    domain_of(guest).suspend()
    suspended = time.monotonic()
    wait_for(lambda: time.monotonic() >= suspended + 1, "a second to pass")
    domain_of(guest).resume()
    guest.wait_edges(2)
    assert guest.pause_by_clock() >= 0.8


def test_a_guest_runs_on_while_libvirtd_is_killed_and_started_again(lab: LabHost, make_guest: MakeGuest) -> None:
    guest = make_guest(ONE_DISK)
    qemu = lab.qemu_pid(guest.name)
    lab.kill_libvirtd()
    assert lab.libvirtd_pid is None
    guest.wait_acks(20)
    lab.start_libvirtd()
    connection = lab.connect()
    assert connection.lookupByName(guest.name).isActive()
    connection.close()
    assert lab.qemu_pid(guest.name) == qemu
    guest.wait_acks(20)


def test_save_and_restore_keep_every_acknowledged_write(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, connection: libvirt.virConnect
) -> None:
    guest = make_guest(TWO_DISKS)
    state = lab.storage("san2") / "state"
    domain_of(guest).save(str(state))
    assert guest.verdict().clean, guest.verdict()
    time.sleep(2.0)  # on a busy machine the guest sees an edge of its clock late, and a shorter pause may not show
    connection.restore(str(state))
    state.unlink()
    guest.wait_acks(20)
    guest.stop_writing()
    assert guest.verdict().clean, guest.verdict()
    assert guest.console.ups == 1
    guest.wait_edges(2)
    assert guest.pause_by_clock() > 0


def test_a_guest_powers_off_when_its_button_is_pressed(make_guest: MakeGuest, domain_of: DomainOf) -> None:
    guest = make_guest(ONE_DISK)
    domain_of(guest).shutdown()
    wait_for(lambda: not domain_of(guest).isActive(), "the guest to power off")
    assert guest.verdict().clean


def test_memory_that_a_guest_keeps_dirty_stays_as_written(make_guest: MakeGuest) -> None:
    guest = make_guest(GuestSpec("dirty", disks=ONE_DISK.disks, memory_mib=192, touch_mib=32, dirty_mib_s=64))
    wait_for(lambda: b"\ntouched 32\n" in guest.place.console.read_bytes(), "the memory to be touched")
    guest.wait_edges(2)
    assert guest.errors() == []


def test_a_transient_guest_with_scsi_uefi_and_tpm_writes(make_guest: MakeGuest, domain_of: DomainOf) -> None:
    disks = (DiskSpec("sda", bus="scsi", size_mib=64, data_mib=4),)
    guest = make_guest(GuestSpec("uefi", disks=disks, persistent=False, uefi=True, tpm=True))
    assert not domain_of(guest).isPersistent()
    assert guest.place.nvram.exists()
    guest.stop_writing()
    assert guest.verdict().clean, guest.verdict()


def test_a_storage_added_later_serves_a_running_lab(lab: LabHost, make_guest: MakeGuest) -> None:
    lab.add_storage("later", "btrfs", 256, direct=True)
    loop = ("losetup", "--list", "--noheadings", "--output", "DIO", "--associated")
    assert run(*loop, lab.at / "images/later.img").strip() == "1"
    assert run(*loop, lab.at / "images/san1.img").strip() == "0"
    guest = make_guest(GuestSpec("late", disks=(DiskSpec("vda", storage="later", size_mib=64, data_mib=4),)))
    guest.stop_writing()
    assert guest.verdict().clean, guest.verdict()


def test_two_guests_do_not_share_a_folder(lab: LabHost, make_guest: MakeGuest) -> None:
    make_guest(ONE_DISK)
    with pytest.raises(LabPlaceUnfit, match="folder of its own"):
        LabGuest.make(lab, ONE_DISK)


def test_nothing_is_left_after_down(lab: LabHost, lab_place: Path) -> None:
    host = LabHost(lab_place).up(SMALL, owner_pid=os.getpid())
    LabGuest.make(host, ONE_DISK)
    assert len(lab_processes(lab_place)) >= 4, "guard, keeper, libvirtd and QEMU"
    host.down()
    assert_nothing_is_left(lab_place)


def test_a_lab_ends_with_its_owner_even_by_sigkill(lab: LabHost, lab_place: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from vmferry.lab import *;"
        f"host = LabHost(Path(sys.argv[1])).up([{SMALL[0]!r}], owner_pid=os.getpid());"
        f"LabGuest.make(host, {ONE_DISK!r});"
        "print('ready', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", script, str(lab_place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not lab_place.exists() and not lab_processes(lab_place), "the guard to end the lab and itself")
    assert_nothing_is_left(lab_place)


def test_up_status_and_down_by_command(lab: LabHost, lab_place: Path) -> None:
    status = commands.up(lab_place, owner_pid=os.getpid())
    assert status.uri == f"qemu+unix:///system?socket={lab_place}/run/libvirt/libvirt-sock"
    assert [(vm.name, vm.running, len(vm.disks)) for vm in status.vms] == [("demo", True, 2)]
    assert status.vms[0].acknowledged >= 2
    with pytest.raises(LabRunning):
        commands.up(lab_place)
    commands.down(lab_place)
    assert_nothing_is_left(lab_place)
    with pytest.raises(NoLab):
        commands.status(lab_place)
