"""What goes wrong on real hosts: every time one runnable VM, no write lost, and a sentence that helps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.support.job_states import SLOW, at_source, until_ended, until_step
from tests.support.seen import TWO_DISKS, destination, images, long, nothing_of_ours, power_off, run

from vmferry.lab import GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import Technology

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
RUNNING = pytest.mark.parametrize("via", ("live", "quick"))
CANCELLED_OFTEN = ("CopyBase", "Mirror", "Save", "FoldLast", "Restore")
"""In make test; the crash matrix cancels at every step of memory hosts, make long at every step of real ones."""


def still_good(guest: LabGuest, domain: libvirt.virDomain) -> None:
    if domain.isActive():
        guest.wait_acks(20)
        power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()


@RUNNING
def test_a_destination_that_fills_up_undoes_the_job(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"fills {via}", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    small = lab.add_storage(f"small{via}", "ext4", 640)
    folder = small / "here"
    folder.mkdir()
    job = ferry.detached(guest.name, "--path", folder, "--via", via, *SLOW)
    until_step(ferry, job, "CopyBase")
    (small / "somebody else's").write_bytes(b"")
    with (small / "somebody else's").open("wb") as hog:
        os.posix_fallocate(hog.fileno(), 0, free_of(small) - (4 << 20))
    ferry.run("job", "limit", job, "none")
    assert until_ended(ferry, job) == "undone"
    assert "no space left" in ferry.job(job)["sentence"]
    at_source(guest, domain, folder)
    still_good(guest, domain)


def free_of(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def test_what_cannot_work_is_refused_with_its_cure_before_anything_is_touched(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("refused", disks=TWO_DISKS, rate=20))
    domain = domain_of(guest)
    xml = domain.XMLDesc(0)
    taken = destination(lab, guest)
    (taken / "vda.qcow2").write_bytes(b"mine")
    tiny = lab.add_storage("tiny", "ext4", 16)
    for folder, words in (
        (taken, "exists and is never overwritten"),
        (lab.storage("san1") / "nowhere", "mkdir"),
        (guest.place.images["vda"].parent, "lies there already"),
        (tiny, "free space there"),
    ):
        ended = ferry.run("migrate-storage", guest.name, "--path", folder)
        assert ended.code == 3, ended.out + ended.err
        assert words in " ".join((ended.out + ended.err).split())
    assert (taken / "vda.qcow2").read_bytes() == b"mine"
    assert domain.XMLDesc(0) == xml
    assert ferry.jobs() == []
    assert ferry.run("migrate-storage", guest.name).code == 2
    assert ferry.run("migrate-storage", "no such vm", "--path", taken).code == 2


def test_a_storage_mounted_read_only_is_refused(lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand) -> None:
    guest = make_guest(GuestSpec("no entry", disks=TWO_DISKS, rate=20))
    sealed = lab.add_storage("sealed", "ext4", 640)
    run("mount", "-o", "remount,ro", str(sealed))
    ended = ferry.run("migrate-storage", guest.name, "--path", sealed)
    assert ended.code == 3
    assert "cannot be written" in " ".join((ended.out + ended.err).split())


def test_a_guest_that_outruns_its_rounds_makes_the_job_wait_for_a_longer_pause(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """No more is allowed than an idle guest's pause: what this one writes in a round always exceeds it."""
    guest = make_guest(GuestSpec("restless", disks=TWO_DISKS, rate=0))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    quick = (guest.name, "--path", folder, "--via", "quick")
    least_s = json.loads(ferry.run("migrate-storage", *quick, "--plan", "--json").out)["plan"]["pause_forecast_s"]
    refused = ferry.run("migrate-storage", *quick, "--max-pause", "100ms")
    assert (refused.code, "--max-pause" in refused.out + refused.err) == (3, True)
    job = ferry.detached(*quick, "--max-pause", f"{least_s * 1000 + 1:.0f}ms")
    wait_for(lambda: ferry.state(job) == "paused", "the job to wait", 120)
    assert "--max-pause" in ferry.job(job)["sentence"]
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    guest.wait_acks(20)
    assert ferry.run("job", "limit", job, "none", "--max-pause", "10m").code == 0
    assert until_ended(ferry, job) == "done"
    assert ferry.receipt(job)["rounds"] >= 1
    assert set(images(domain).values()) == {folder / p.name for p in guest.place.images.values()}
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    still_good(guest, domain)


def test_two_recover_at_once_and_one_worker_does_the_work(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("twice", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, *SLOW)
    until_step(ferry, job, "CopyBase")
    assert ferry.kill_worker()
    both = [ferry.start("recover"), ferry.start("recover")]
    wait_for(lambda: ferry.worker_pid is not None, "a worker", 60)
    ferry.run("job", "limit", job, "none")
    assert [(p.communicate(timeout=200)[0], p.returncode)[1] for p in both] == [0, 0]
    assert ferry.job(job)["state"] == "done"
    assert set(images(domain).values()) == {folder / p.name for p in guest.place.images.values()}
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    still_good(guest, domain)


def test_a_second_job_on_a_vm_is_refused_and_cancel_undoes_the_first(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("first", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    first = ferry.start("migrate-storage", guest.name, "--path", folder, "--limit", "2MiB")
    wait_for(lambda: bool(ferry.jobs()), "the first job", 60)
    job = ferry.jobs()[0]["id"]
    until_step(ferry, job, "CopyBase")
    refused = ferry.run("migrate-storage", guest.name, "--path", folder)
    assert refused.code == 3
    assert job in refused.err + refused.out
    assert ferry.run("job", "cancel", job).code == 0
    first.communicate(timeout=120)
    assert first.returncode == 5
    at_source(guest, domain, folder)
    still_good(guest, domain)


@pytest.mark.parametrize("via", ("live", "quick"))
def test_libvirtd_killed_in_mid_job_costs_nothing(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"daemonless {via}", disks=TWO_DISKS, rate=15))
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", via, *SLOW)
    until_step(ferry, job, "CopyBase")
    lab.kill_libvirtd()
    ferry.run("job", "limit", job, "none")
    lab.start_libvirtd()
    assert until_ended(ferry, job) in ("done", "undone")
    connection = lab.connect()
    domain = connection.lookupByName(guest.name)
    assert domain.isActive()
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    still_good(guest, domain)
    connection.close()


@pytest.mark.parametrize(
    ("step", "via"),
    [
        ("CopyBase", "live"),
        ("Rounds", "quick"),
        ("Mirror", "live"),
        ("Settle", "quick"),
        long("CopyBase", "quick"),
        long("Rounds", "live"),
    ],
)
def test_qemu_killed_in_mid_job_leaves_one_vm_that_starts(
    step: str, via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"killed {via} {step}", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", via, *(SLOW if step == "CopyBase" else ()))
    wait_for(lambda: ferry.step(job) == step or ended(ferry, job), f"{step}", 120)
    lab.kill_qemu(guest.name)
    ferry.run("job", "limit", job, "none")
    state = until_ended(ferry, job)
    assert state in ("done", "undone"), ferry.job(job)
    where = folder if state == "done" else guest.place.images["vda"].parent
    assert {p.parent for p in images(domain, live=False).values()} == {where}
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    assert guest.verdict().clean, guest.verdict()
    domain.create()
    guest.wait_writing()
    still_good(guest, domain)


def ended(ferry: VmferryCommand, job: str) -> bool:
    return ferry.state(job) in ("done", "undone")


@pytest.mark.parametrize(
    ("via", "step"),
    [
        (str(technology), step) if step in CANCELLED_OFTEN else long(str(technology), step)
        for technology in (Technology.LIVE, Technology.QUICK)
        for strategy in [STRATEGIES[technology]]
        for step in strategy.names[2 : strategy.no_return]
        if step not in ("KeepDefined", "Point", "CopyFiles")
    ],
)
def test_cancel_at_a_step_undoes_the_job_or_comes_too_late(
    via: str, step: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"cancelled {via} {step}", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", via)
    wait_for(lambda: reached(ferry, job, step) or ended(ferry, job), step, 120)
    ferry.run("job", "cancel", job)
    state = until_ended(ferry, job)
    if state == "undone":
        assert ferry.job(job)["kind"] == "Cancelled"
        at_source(guest, domain, folder)
    still_good(guest, domain)


def reached(ferry: VmferryCommand, job: str, step: str) -> bool:
    return step in ferry.steps(job)


def test_a_limit_of_a_storage_holds_a_running_job_back_until_it_is_lifted(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("held back", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    assert ferry.run("limit", "storage", folder, "1MiB").code == 0
    job = ferry.detached(guest.name, "--path", folder)
    until_step(ferry, job, "CopyBase")
    assert ferry.kill_worker()
    assert "1.0 MiB/s" in ferry.run("limits").out  # another worker, the same limit
    guest.wait_acks(50)
    assert ferry.step(job) == "CopyBase"
    assert ferry.run("limit", "storage", folder, "none").code == 0
    assert until_ended(ferry, job) == "done"
    still_good(guest, domain)
