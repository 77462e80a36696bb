"""Each technology moves a real guest's two disks while it writes; the guest's disks are the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.support.seen import (
    ERASER,
    HARD,
    TWO_DISKS,
    check_image,
    destination,
    images,
    nothing_of_ours,
    of_snapshot,
    power_off,
    untouched,
)

from vmferry.lab import GuestSpec, LabGuest, LabHost
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
WRITTEN_SINCE = 6
TECHNOLOGIES = ("live", "quick", "offline")


@pytest.mark.parametrize("spec", [HARD, ERASER], ids=lambda spec: spec.name)
@pytest.mark.parametrize("via", TECHNOLOGIES)
def test_a_guest_moves_and_loses_nothing(
    via: str, spec: GuestSpec, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(spec)
    domain = domain_of(guest)
    source = guest.place.images["vda"].parent
    snapshot = of_snapshot(guest.place.images["vda"], "before", TWO_DISKS[0])
    still = {d.target: untouched(guest.place.images[d.target], d.format, d) for d in TWO_DISKS}
    guest.wait_acks(50)
    if via == "offline":
        power_off(guest, domain)

    folder = destination(lab, guest)
    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via)

    assert ended.code == 0, ended.out + ended.err
    verified = ferry.run("verify", ferry.jobs()[0]["id"])
    assert verified.code == (0 if via == "offline" else WRITTEN_SINCE), verified.out + verified.err
    moved = {d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}
    assert images(domain, live=True) == moved
    assert images(domain, live=False) == moved
    assert list(source.iterdir()) == []
    nothing_of_ours(folder, source)
    if via != "offline":
        guest.wait_acks(50)
        power_off(guest, domain)
    assert guest.verdict(moved).clean, guest.verdict(moved)
    assert {d.target: untouched(moved[d.target], d.format, d) for d in TWO_DISKS} == still
    assert of_snapshot(moved["vda"], "before", TWO_DISKS[0]) == snapshot
    check_image(moved["vda"])
    _starts_again(guest, domain, moved)
    _receipt_is_whole(ferry, via, moved)


def _starts_again(guest: LabGuest, domain: libvirt.virDomain, moved: dict[str, Path]) -> None:
    domain.create()
    guest.wait_writing()
    power_off(guest, domain)
    assert guest.verdict(moved).clean
    assert guest.errors() == []


def _receipt_is_whole(ferry: VmferryCommand, via: str, moved: dict[str, Path]) -> None:
    job = ferry.jobs()[0]
    receipt = ferry.receipt(job["id"])
    assert job["state"] == "done"
    assert receipt["technology"] == via
    assert receipt["verified"] is True
    assert {d["target"]: d["to"] for d in receipt["disks"]} == {t: str(p) for t, p in moved.items()}
    assert all(d["root_hash"] and d["copied_bytes"] > 0 for d in receipt["disks"])
    assert (receipt["pause_s"] > 0) == (via != "offline")


def test_auto_takes_live_for_a_running_vm_and_offline_for_one_that_is_off(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("steady", disks=TWO_DISKS, rate=15))
    first, second = destination(lab, guest), guest.place.images["vda"].parent
    assert ferry.run("migrate-storage", guest.name, "--path", first).code == 0
    power_off(guest, domain_of(guest))
    assert ferry.run("migrate-storage", guest.name, "--path", second).code == 0
    assert [job["plan"]["technology"] for job in ferry.jobs()] == ["offline", "live"]
    assert guest.verdict().clean


@pytest.mark.parametrize("via", ("live", "quick"))
def test_a_paused_vm_moves_and_stays_paused(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("steady", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    guest.wait_acks(50)
    domain.suspend()
    ended = ferry.run("migrate-storage", guest.name, "--path", destination(lab, guest), "--via", via)
    assert ended.code == 0, ended.out + ended.err
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    domain.resume()
    guest.wait_acks(50)
    power_off(guest, domain)
    assert guest.verdict().clean


@pytest.mark.parametrize("via", ("live", "quick"))
def test_a_transient_vm_stays_transient(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("passing", disks=TWO_DISKS, rate=15, persistent=False))
    guest.wait_acks(50)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via)
    assert ended.code == 0, ended.out + ended.err
    assert not domain.isPersistent()
    guest.wait_acks(50)
    guest.stop_writing()
    domain.suspend()
    assert guest.verdict({d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}).clean


@pytest.mark.parametrize("via", ("live", "quick"))
def test_a_kept_source_is_a_way_back(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("steady", disks=TWO_DISKS, rate=15))
    guest.wait_acks(50)
    source = guest.place.images["vda"].parent
    ended = ferry.run("migrate-storage", guest.name, "--path", destination(lab, guest), "--via", via, "--keep-source")
    assert ended.code == 0, ended.out + ended.err
    kept = {Path(p).name.split(".")[0]: Path(p) for p in ferry.receipt(ferry.jobs()[0]["id"])["kept"]}
    assert sorted(source.iterdir()) == sorted(kept.values())
    check_image(kept["vda"])
    for disk in TWO_DISKS:  # as of the cut-over: nothing that lay there before the move is gone
        assert untouched(kept[disk.target], disk.format, disk) == untouched(
            images(domain_of(guest))[disk.target], disk.format, disk
        )
