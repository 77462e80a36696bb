"""A disk is one image from the instant in which the guest is let run; nothing has to be written below it then.

The second half runs QEMU confined, as AppArmor confines it (lab/hosts/confined.py): it may not write what lay below its
disks when it was started. An AppArmor of the kernel's own cannot be had everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from tests.support.fleets import ManagedLab, managed
from tests.support.guests import MOVING, MakeGuestOn, folder_on
from tests.support.job_states import at_source, until_ended, until_step
from tests.support.seen import TWO_DISKS, check_image, destination, images, long, nothing_of_ours, power_off, run

from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.lab import GuestSpec, Lab, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
CONFINED = GuestSpec("confined", disks=TWO_DISKS, rate=50, confined=True)
QUICK = ("--via", "quick", "--max-pause", "60s")
WORDS = {"live": ("--via", "live"), "quick": QUICK}


@dataclass
class FirstInstant:
    """What there was as the guest was let run: of each disk the images, and the files at the destination."""

    seen: threading.Event = field(default_factory=threading.Event)
    images: dict[str, list[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


@contextmanager
def first_instant(uri: str, uuid: str, folder: Path) -> Iterator[FirstInstant]:
    """Looks as soon as libvirt tells that the guest goes on, in the thread that libvirt tells it in."""
    instant, link = FirstInstant(), LibvirtConnection(uri)

    def told(_conn: object, domain: libvirt.virDomain, event: int, _detail: int, _opaque: object) -> None:
        if event != libvirt.VIR_DOMAIN_EVENT_RESUMED or domain.UUIDString() != uuid or instant.seen.is_set():
            return
        instant.files = {path.name for path in folder.iterdir()}
        root = etree.fromstring(domain.XMLDesc(0))
        for disk in root.iterfind("./devices/disk[@device='disk']"):
            target = disk.find("target")
            assert target is not None
            instant.images[target.get("dev", "")] = [source.get("file", "") for source in disk.iter("source")]
        instant.seen.set()

    lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
    number = link.call("listen", lambda conn: conn.domainEventRegisterAny(None, lifecycle, told, None))
    try:
        yield instant
        assert instant.seen.wait(20)
    finally:
        link.call("listen no longer", lambda conn: conn.domainEventDeregisterAny(number))


def one_image_each(instant: FirstInstant, moved: dict[str, Path]) -> None:
    """And of the job there is no image at the destination: a saved state, spent, at the most."""
    assert {target: instant.images[target] for target in moved} == {t: [str(image)] for t, image in moved.items()}
    images = {name for name in instant.files if ".memory" not in name}
    assert images == {image.name for image in moved.values()}


@pytest.mark.parametrize("via", WORDS)
def test_a_guest_is_let_run_on_one_image_for_each_disk(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"one {via}", disks=TWO_DISKS, rate=0))
    guest.wait_acks(50)
    folder = destination(lab, guest)
    moved = {d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}
    with first_instant(lab.uri, guest.place.uuid, folder) as instant:
        ended = ferry.run("migrate-storage", guest.name, "--path", folder, *WORDS[via])
    assert ended.code == 0, ended.out + ended.err
    one_image_each(instant, moved)
    guest.wait_acks(50)
    power_off(guest, domain_of(guest))
    assert guest.verdict(moved).clean


@pytest.mark.parametrize("via", WORDS)
def test_a_confined_guest_moves_twice_and_loses_nothing(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """The second time its QEMU was started by the first move, where that loads memory."""
    guest = make_guest(CONFINED)
    domain = domain_of(guest)
    first, second = destination(lab, guest), guest.place.images["vda"].parent
    for folder in (first, second):
        guest.wait_acks(50)
        ended = ferry.run("migrate-storage", guest.name, "--path", folder, *WORDS[via])
        assert ended.code == 0, ended.out + ended.err
    guest.wait_acks(50)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    check_image(guest.place.images["vda"])
    nothing_of_ours(first, second)


@pytest.mark.parametrize("via", WORDS)
def test_a_confined_guest_on_a_chain_moves(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """What lies below its disks is never written, at neither end."""
    guest = make_guest(replace(CONFINED, name=f"chained {via}"))
    domain = domain_of(guest)
    run("virsh", "-c", lab.uri, "snapshot-create-as", guest.name, "outside", "--disk-only")
    guest.wait_acks(20)
    power_off(guest, domain)
    domain.create()
    guest.wait_writing()
    folder = destination(lab, guest)
    ended = ferry.run("migrate-storage", guest.name, "--path", folder, *WORDS[via])
    assert ended.code == 0, ended.out + ended.err
    guest.wait_acks(50)
    power_off(guest, domain)
    verdict = guest.verdict()
    assert verdict.clean, verdict
    assert {image.parent for image in images(domain, live=False).values()} == {folder}
    nothing_of_ours(folder, guest.place.images["vda"].parent)


@pytest.mark.parametrize("step", ["Save", long("FoldLast"), long("Point")])
def test_a_confined_guest_comes_back_from_its_saved_state(
    step: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """What it had written to the overlays is in the source then, which QEMU may write again."""
    guest = make_guest(replace(CONFINED, name=f"back {step}", rate=0))
    domain = domain_of(guest)
    guest.wait_acks(50)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, *QUICK)
    wait_for(lambda: step in ferry.steps(job) or ferry.state(job) in ("done", "undone"), step, 120)
    ferry.run("job", "cancel", job)
    if until_ended(ferry, job) == "undone":
        at_source(guest, domain, folder)
        assert domain.isActive()
    guest.wait_acks(50)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()


def test_a_confined_guest_that_was_started_again_in_mid_job_runs_until_it_is_shut_down_and_is_then_undone(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(replace(CONFINED, name="started again"))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--limit", "2MiB")
    until_step(ferry, job, "CopyBase")
    guest.wait_acks(50)
    power_off(guest, domain)
    domain.create()
    guest.wait_writing()
    assert ferry.run("job", "cancel", job).code == 0
    wait_for(lambda: "shut it down when it suits" in str(ferry.job(job)["progress"]), "the job to ask for it", 60)
    guest.wait_acks(50)
    power_off(guest, domain)
    assert until_ended(ferry, job) == "undone"
    at_source(guest, domain, folder)
    assert guest.verdict().clean, guest.verdict()
    domain.create()
    guest.wait_writing()


# -- between hosts


@pytest.fixture
def fleet(two_hosts: Lab, tmp_path: Path) -> Iterator[ManagedLab]:
    with managed(two_hosts, tmp_path.name) as managed_lab:
        yield managed_lab


@pytest.mark.xdist_group("two hosts")
@pytest.mark.parametrize("via", ["live", "quick"])
def test_a_confined_guest_arrives_on_one_image_for_each_disk(
    via: str, fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, replace(MOVING, name=f"arrives {via}", confined=True))
    guest.wait_acks(20)
    folder = folder_on(two, guest)
    moved = {d.target: folder / guest.place.images[d.target].name for d in guest.spec.disks if d.storage == "san1"}
    with first_instant(two.uri, guest.place.uuid, folder) as instant:
        ended = fleet.migrate(guest, two, "--path", folder, *WORDS[via])
    assert ended.code == 0, ended.out + ended.err
    one_image_each(instant, moved)
    guest.moved_to(two)
    guest.wait_acks(20)
    guest.stop_writing()
    assert guest.verdict().clean, guest.verdict()
