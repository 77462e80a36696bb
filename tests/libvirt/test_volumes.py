"""Disks move between files, block devices, LUNs, NBD exports and NFS, every kind to every kind, under a guest.

A walk through all pairs of kinds: each job of it moves both disks of one guest, each along its own half. Cut in
parts, so that guests run side by side; make test walks each part with one technology, make long with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from tests.support.seen import destination, long, power_off, untouched
from tests.support.volumes import LabVolumes

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
KINDS = ("qcow2", "raw", "device", "iscsi", "nbd", "nfs")
PARTS = 3
SIZE_MIB, LARGER_MIB = 96, 112
DISKS = (
    DiskSpec("vda", format="qcow2", size_mib=SIZE_MIB, data_mib=8),
    DiskSpec("vdb", format="raw", size_mib=SIZE_MIB, data_mib=8),
)


def walk_through_all_pairs() -> list[str]:
    """Kinds in an order in which each follows each once, itself too: an Eulerian circuit, by Hierholzer."""
    left = {kind: list(KINDS) for kind in KINDS}
    stack, circuit = [KINDS[0]], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            circuit.append(stack.pop())
    return circuit


def two_halves() -> tuple[list[str], list[str]]:
    """One for the disk that begins as qcow2, one for that which begins as raw; together they hold every pair."""
    circuit = walk_through_all_pairs()[:-1]
    middle = len(circuit) // 2
    for turn in range(len(circuit)):
        turned = circuit[turn:] + circuit[:turn]
        if (turned[0], turned[middle]) == ("qcow2", "raw"):
            return turned[: middle + 1], [*turned[middle:], turned[0]]
    raise AssertionError("no turn of the walk begins with qcow2 and has raw in its middle")


def part_of(walk: Sequence[str], part: int) -> Sequence[str]:
    """The last kind of a part is the first of the next."""
    long = -(-(len(walk) - 1) // PARTS)
    return walk[part * long : (part + 1) * long + 1]


def test_the_parts_of_the_walk_meet_every_pair_of_kinds() -> None:
    pairs = {pair for half in two_halves() for part in range(PARTS) for pair in pairwise(part_of(half, part))}
    assert pairs == {(a, b) for a in KINDS for b in KINDS}


class Places:
    """Two volumes of each kind of a walk, larger than its disk; and a folder for each step of it as a file."""

    def __init__(self, volumes: LabVolumes, target: str, folder: Path, walk: Sequence[str]) -> None:
        self._known = {
            kind: [volumes.make(kind, f"{folder.name}-{target}-{kind}{n}", LARGER_MIB) for n in (1, 2)]
            for kind in {*walk} - {"qcow2", "raw"}
        }
        self._folder = folder
        self._steps = 0

    def next(self, kind: str) -> str:
        self._steps += 1
        if kind in self._known:
            self._known[kind].reverse()
            return self._known[kind][0]
        folder = self._folder / f"{self._steps} {kind}"
        folder.mkdir()
        return str(folder)


def located(domain: libvirt.virDomain, target: str, *, live: bool) -> str:
    """Where a disk is, in one line: type and source as libvirt tells them."""
    root = etree.fromstring(domain.XMLDesc(0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE))
    disk = root.find(f"./devices/disk/target[@dev='{target}']/..")
    assert disk is not None
    source = disk.find("source")
    assert source is not None
    at = source.get("file") or source.get("dev") or f"{source.get('protocol')} {source.get('name', '')}"
    driver = disk.find("driver")
    assert driver is not None
    return f"{disk.get('type')} {driver.get('type')} {at}"


def tour(disk: DiskSpec, walk: Sequence[str], volumes: LabVolumes, folder: Path) -> list[tuple[str, str]]:
    """Kinds and places for one disk: first to where the walk begins, if it is not there."""
    places = Places(volumes, disk.target, folder, walk)
    return [(kind, places.next(kind)) for kind in (walk[1:] if walk[0] == disk.format else walk)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("via", "part"),
    [
        ("live", 0),
        ("quick", 1),
        ("live", 2),
        long("quick", 0),
        long("live", 1),
        long("quick", 2),
    ],
)
def test_every_kind_of_storage_moves_to_every_kind_and_no_write_is_lost(
    via: str,
    part: int,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    volumes: LabVolumes,
    inner_ferry: VmferryCommand,
) -> None:
    guest = make_guest(GuestSpec(f"{via} tour {part}", disks=DISKS, rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    still = {d.target: untouched(guest.place.images[d.target], d.format, d) for d in DISKS}
    tours = [tour(d, part_of(walk, part), volumes, folder) for walk, d in zip(two_halves(), DISKS, strict=True)]
    longest = max(map(len, tours))
    for number in range(longest):
        stops = {d.target: way[number] for d, way in zip(DISKS, tours, strict=True) if number < len(way)}
        _move(guest, inner_ferry, via, stops, folder)
        for target in stops:
            assert located(domain, target, live=True) == located(domain, target, live=False)
        guest.wait_acks(20)
    power_off(guest, domain)
    last = {d.target: _image(volumes, inner_ferry, way[-1]) for d, way in zip(DISKS, tours, strict=True)}
    assert guest.verdict(last).clean, guest.verdict(last)
    assert guest.errors() == []
    formats = {d.target: _format(way[-1]) for d, way in zip(DISKS, tours, strict=True)}
    assert {d.target: untouched(last[d.target], formats[d.target], d) for d in DISKS} == still


def _move(guest: LabGuest, ferry: VmferryCommand, via: str, stops: dict[str, tuple[str, str]], overlays: Path) -> None:
    """To files in the format that the kind names; to volumes raw, so that both disks may share a format."""
    groups: dict[str, list[str]] = {}
    for target, stop in stops.items():
        groups.setdefault(_format(stop), []).append(f"{target}={stop[1]}")
    for format_, places in groups.items():
        disks = [word for place in places for word in ("--disk", place)]
        words = ("--via", via, "--max-pause", "60s", "--overlay-dir", overlays, "--format", format_, "--overwrite")
        ended = ferry.run("migrate-storage", guest.name, *disks, *words)
        assert ended.code == 0, f"{stops}: {ended.out + ended.err}"


def _format(stop: tuple[str, str]) -> str:
    return "qcow2" if stop[0] == "qcow2" else "raw"


def _image(volumes: LabVolumes, ferry: VmferryCommand, stop: tuple[str, str]) -> Path:
    kind, place = stop
    if place in volumes.backing:
        return volumes.backing[place]
    found = [path for path in Path(place).iterdir() if path.is_file()]
    assert len(found) == 1, (kind, found)
    return found[0]


SLOW = ("--limit", "4MiB")
ONE_DISK = (DiskSpec("vda", format="raw", size_mib=SIZE_MIB, data_mib=8),)


@pytest.mark.parametrize("kind", ["device", "iscsi", long("nbd"), long("nfs")])
def test_a_guest_that_dies_while_it_leaves_a_volume_is_whole_there_and_starts_again(
    kind: str,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    volumes: LabVolumes,
    inner_ferry: VmferryCommand,
) -> None:
    """Overlays that libvirt has made over a volume are merged without QEMU, by the names in their headers."""
    guest = make_guest(GuestSpec(f"dies on {kind}", disks=ONE_DISK, rate=15))
    domain, folder = domain_of(guest), destination(lab, guest)
    volume = volumes.make(kind, f"dies-{kind}", LARGER_MIB)
    there = inner_ferry.run("migrate-storage", guest.name, "--disk", f"vda={volume}")
    assert there.code == 0, there.out + there.err
    before = located(domain, "vda", live=True)
    job = inner_ferry.detached(guest.name, "--path", folder, "--via", "quick", "--limit", "8MiB")
    wait_for(lambda: inner_ferry.step(job) == "CopyBase", "the copy to begin", 60)
    guest.wait_acks(20)
    lab.kill_qemu(guest.name)
    wait_for(lambda: inner_ferry.state(job) in ("undone", "stuck"), "the job to be undone", 60)
    assert inner_ferry.state(job) == "undone", inner_ferry.run("job", "show", job).out
    assert located(domain, "vda", live=False) == before
    assert list(folder.iterdir()) == []
    domain.create()
    guest.wait_writing()
    kept = inner_ferry.run("migrate-storage", guest.name, "--path", folder, "--keep-source")
    assert kept.code == 0, kept.out + kept.err
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()


@pytest.mark.parametrize("kind", [long("device"), long("iscsi"), "nfs"])
def test_a_killed_worker_goes_on_with_a_copy_to_a_volume(
    kind: str,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    volumes: LabVolumes,
    inner_ferry: VmferryCommand,
) -> None:
    guest = make_guest(GuestSpec(f"killed {kind}", disks=ONE_DISK, rate=15))
    volume = volumes.make(kind, f"killed-{kind}", LARGER_MIB)
    job = inner_ferry.detached(guest.name, "--disk", f"vda={volume}", *SLOW)
    wait_for(lambda: inner_ferry.step(job) == "CopyBase", "the copy to begin", 60)
    for _ in range(3):
        assert inner_ferry.kill_worker()
        inner_ferry.run("jobs")  # any command starts a worker, which goes on
        guest.wait_acks(20)
    assert inner_ferry.run("job", "limit", job, "none").code == 0
    wait_for(lambda: inner_ferry.state(job) == "done", "the job to end", 120)
    power_off(guest, domain_of(guest))
    verdict = guest.verdict({"vda": volumes.backing[volume]})
    assert verdict.clean, verdict
    assert list(guest.place.images["vda"].parent.iterdir()) == []


def test_a_cancelled_move_to_a_volume_leaves_the_guest_where_it_was_and_the_volume_free(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, volumes: LabVolumes, inner_ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("cancelled", disks=ONE_DISK, rate=15))
    domain, source = domain_of(guest), guest.place.images["vda"]
    device = volumes.device("cancelled", LARGER_MIB)
    before = located(domain, "vda", live=True)
    job = inner_ferry.detached(guest.name, "--disk", f"vda={device}", *SLOW)
    wait_for(lambda: inner_ferry.step(job) == "CopyBase", "the copy to begin", 60)
    assert inner_ferry.run("job", "cancel", job).code == 0
    wait_for(lambda: inner_ferry.state(job) == "undone", "the job to be undone", 60)
    assert located(domain, "vda", live=True) == located(domain, "vda", live=False) == before
    assert list(source.parent.iterdir()) == [source]
    again = inner_ferry.run("migrate-storage", guest.name, "--disk", f"vda={device}", "--overwrite")
    assert again.code == 0, again.out + again.err
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict({"vda": volumes.backing[device]}).clean


def test_a_volume_that_cannot_be_taken_is_refused_and_the_vm_is_untouched(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, volumes: LabVolumes, inner_ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("refused", disks=ONE_DISK, rate=20))
    domain = domain_of(guest)
    before = domain.XMLDesc(0)
    small, full = volumes.device("small", SIZE_MIB - 1), volumes.lun("full", LARGER_MIB)
    nfs = volumes.nfs("there", 1)
    with volumes.backing[full].open("r+b") as file:
        file.write(b"somebody's")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mounted = next(device for device, place, *_ in mounts if place == str(lab.storage("san2")))
    assert mounted.startswith("/dev/loop")
    for place, says in (
        (small, "needs"),
        (full, "not empty"),
        (mounted, "has it open"),
        ("iscsi://127.0.0.1:1/iqn.2026-11.invalid.vmferry:none/1", "cannot be used"),
        ("nfs://127.0.0.1/export/disk", "?uid=NUMBER&gid=NUMBER"),
        (nfs.replace("there", "missing"), "make it: qemu-img create -f raw"),
        (nfs.replace("/volumes/", "/nothing/"), "cannot be used"),
    ):
        ended = inner_ferry.run("migrate-storage", guest.name, "--disk", f"vda={place}")
        assert (ended.code, says in " ".join((ended.out + ended.err).split())) == (3, True), (place, ended)
    assert domain.XMLDesc(0) == before
