"""Memory that is written while the guest runs: only KVM may (decision 0009), so a guest that any KVM can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import libvirt
import pytest
from tests.support.seen import check_image, destination, images, long, nothing_of_ours, power_off

from vmferry.errors import LabNeeds
from vmferry.hosts.fence import Fence
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.lab import BARE_GUEST, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.guests.bare import bare_boot
from vmferry.lab.vmferry_command import VmferryCommand
from vmferry.model import Changes, FencingToken
from vmferry.transfer import Unwatched

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]

BUSY = replace(BARE_GUEST, memory_mib=256, touch_mib=48, dirty_mib_s=16, rate=5)
"""It dirties its memory all the time, and looks at every page again."""


@pytest.fixture(autouse=True)
def _kvm() -> None:
    try:
        accelerator = bare_boot().accelerator
    except LabNeeds as error:
        pytest.skip(str(error))
    if accelerator != "kvm":
        pytest.skip("no guest runs under KVM here, not even one without an operating system")


def walks(guest: LabGuest) -> int:
    """How often the guest has found all of its memory as it had left it."""
    return guest.place.console.read_bytes().count(b"\nwalked ")


def walk_again(guest: LabGuest, times: int = 2) -> None:
    wanted = walks(guest) + times
    wait_for(lambda: walks(guest) >= wanted, "the guest to look at its memory", 120, guest.place.console)


@pytest.mark.parametrize("via", ["quick", "live"])
def test_a_kvm_guest_that_dirties_its_memory_moves_and_loses_neither_pages_nor_writes(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(BUSY)
    domain = domain_of(guest)
    source = guest.place.images["hda"].parent
    walk_again(guest, 1)

    folder = destination(lab, guest)
    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via, "--max-pause", "20s")

    assert ended.code == 0, ended.out + ended.err
    assert ferry.job(ferry.jobs()[0]["id"])["plan"]["precopy"] is True
    moved = {target: folder / image.name for target, image in guest.place.images.items()}
    assert images(domain) == images(domain, live=False) == moved
    walk_again(guest)
    power_off(guest, domain)
    assert guest.errors() == []
    assert guest.verdict(moved).clean, guest.verdict(moved)
    check_image(moved["hda"])
    nothing_of_ours(folder, source)
    assert list(source.iterdir()) == []


def test_the_guest_writes_on_while_its_memory_is_written(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """The very point: acknowledged writes between the first byte of the saved state and the last."""
    guest = make_guest(replace(BUSY, memory_mib=768, touch_mib=640, dirty_mib_s=1, rate=20))
    wait_for(lambda: b"\ntouched " in guest.place.console.read_bytes(), "its memory to be touched", 120)
    guest.wait_acks(5)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", "quick", "--max-pause", "20s")
    memory = folder / f"vmferry-{job}.memory"
    wait_for(memory.exists, "its memory to be written", 120)
    before = len(guest.acks())
    grown = memory.stat().st_size
    wait_for(lambda: not memory.exists() or memory.stat().st_size > grown + (400 << 20), "more of it", 60)
    during = len(guest.acks())
    wait_for(lambda: ferry.state(job) in ("done", "undone"), "the job to end", 120)
    assert ferry.state(job) == "done"
    assert during > before
    guest.wait_acks(10)
    power_off(guest, domain_of(guest))
    assert guest.errors() == []
    assert guest.verdict().clean


def test_a_save_that_is_kept_slow_keeps_nobody_waiting_and_leaves_the_rate_as_it_was(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, tmp_path: Path
) -> None:
    """Seen: looks on the connection that waited for the save were answered at its end."""
    guest = make_guest(replace(BUSY, touch_mib=128, dirty_mib_s=4))
    wait_for(lambda: b"\ntouched " in guest.place.console.read_bytes(), "its memory to be touched", 120)
    domain, uuid, memory = domain_of(guest), guest.place.uuid, lab.storage("san2") / f"{guest.name}.memory"
    rate = domain.migrateGetMaxSpeed()
    host = LibvirtHosts(Fence(tmp_path)).open(lab.uri, FencingToken("abcd2345", 1))
    saving = Thread(target=host.save, args=(uuid, memory, Unwatched(), 32 << 20))
    saving.start()

    wait_for(lambda: memory.exists() and memory.stat().st_size > 8 << 20, "its memory to be written", 60)
    acks, looks = len(guest.acks()), 0
    while memory.stat().st_size < 96 << 20:
        assert host.active_image(uuid, "hda") == guest.place.images["hda"]
        looks += 1
    written = len(guest.acks()) - acks
    saving.join()

    assert looks > 20
    assert written > 0
    assert domain.migrateGetMaxSpeed() == rate
    host.restore(uuid, memory, Changes())
    host.release(uuid, memory, run=True)
    walk_again(guest)
    host.remove(memory)
    power_off(guest, domain)
    assert guest.errors() == []
    assert guest.verdict().clean


@pytest.mark.parametrize("kill_at_mib", [long(0), 16, long(40)])
def test_a_worker_killed_while_memory_is_written_loses_nothing(
    kill_at_mib: int, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(BUSY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", "quick", "--max-pause", "20s")
    memory = folder / f"vmferry-{job}.memory"

    def written() -> bool:
        return memory.exists() and memory.stat().st_size >= kill_at_mib << 20

    wait_for(written, "its memory to be written", 120)
    assert ferry.kill_worker()
    ferry.run("recover")
    assert ferry.job(job)["state"] in ("done", "undone")
    wait_for(domain.isActive, "the guest to run", 60)
    walk_again(guest)
    guest.wait_acks(10)
    now: dict[str, Path] = images(domain)
    power_off(guest, domain)
    assert guest.errors() == []
    assert guest.verdict(now).clean, guest.verdict(now)
    nothing_of_ours(folder, guest.place.images["hda"].parent)
