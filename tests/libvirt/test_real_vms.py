"""VMs as they really are: snapshots, chains, firmware, drives that stay, odd names, several destinations."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from tests.support.seen import (
    HARD,
    TWO_DISKS,
    check_image,
    destination,
    images,
    nothing_of_ours,
    of_snapshot,
    power_off,
    run,
    whole,
)

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
RUNNING = pytest.mark.parametrize("via", ("live", "quick"))
QCOW2S = (
    DiskSpec("vda", format="qcow2", data_mib=16, internal_snapshot="before"),
    DiskSpec("vdb", format="qcow2", size_mib=128, data_mib=8, internal_snapshot="before"),
)


def move(ferry: VmferryCommand, *words: str | Path) -> None:
    ended = ferry.run("migrate-storage", *words)
    assert ended.code == 0, ended.out + ended.err


def mentioned(snapshot: libvirt.virDomainSnapshot) -> set[Path]:
    root = etree.fromstring(snapshot.getXMLDesc(0))
    return {Path(source.get("file", "")).parent for source in root.iter("source") if source.get("file")}


@RUNNING
def test_internal_snapshots_and_their_metadata_arrive_and_can_be_gone_back_to(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("with history", disks=QCOW2S, rate=15))
    domain = domain_of(guest)
    power_off(guest, domain)
    domain.snapshotCreateXML("<domainsnapshot><name>calm</name></domainsnapshot>", 0)
    calm = [of_snapshot(guest.place.images[d.target], "calm", d) for d in QCOW2S]
    domain.create()
    guest.wait_writing()
    folder = destination(lab, guest)

    move(ferry, guest.name, "--path", folder, "--via", via)

    snapshot = domain.snapshotLookupByName("calm")
    assert snapshot.isCurrent()
    guest.wait_acks(30)
    power_off(guest, domain)
    assert guest.verdict().clean
    assert [of_snapshot(images(domain)[d.target], "calm", d) for d in QCOW2S] == calm
    domain.revertToSnapshot(snapshot)  # before, libvirt would have pointed the VM at the old places
    assert set(images(domain, live=False).values()) == {folder / "vda.qcow2", folder / "vdb.qcow2"}
    domain.create()
    guest.wait_writing()


@RUNNING
def test_external_snapshots_arrive_as_a_chain(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(HARD)
    domain = domain_of(guest)
    guest.wait_acks(30)
    domain.snapshotCreateXML(
        "<domainsnapshot><name>outer</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    )
    guest.wait_acks(30)
    outer = {d.target: whole(guest.place.images[d.target], d.format, d) for d in TWO_DISKS}
    source, folder = guest.place.images["vda"].parent, destination(lab, guest)
    before = {p.name for p in source.iterdir()}

    move(ferry, guest.name, "--path", folder, "--via", via)

    assert {p.name for p in folder.iterdir()} == before
    assert list(source.iterdir()) == []
    assert mentioned(domain.snapshotLookupByName("outer")) == {folder}
    chain = run("qemu-img", "info", "-U", "--backing-chain", str(images(domain)["vda"]))
    assert str(source) not in chain
    guest.wait_acks(30)
    power_off(guest, domain)
    assert guest.verdict().clean
    below = {d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}
    assert {d.target: whole(below[d.target], d.format, d) for d in TWO_DISKS} == outer
    check_image(folder / "vda.qcow2")


@RUNNING
def test_a_chain_is_moved_as_a_chain_and_a_shared_base_stays_for_its_other_users(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    golden = lab.storage("san1") / f"golden-{via}.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(golden), "256M")
    specs = (DiskSpec("vda", backing=golden), DiskSpec("vdb", format="raw", size_mib=64, data_mib=4))
    first = make_guest(GuestSpec(f"first {via}", disks=specs, rate=15))
    second = make_guest(GuestSpec(f"second {via}", disks=specs, rate=20))
    folder = destination(lab, first)
    try:
        move(ferry, first.name, "--path", folder, "--via", via)
        assert golden.exists()
        assert (folder / golden.name).exists()
        first.wait_acks(30)
        second.wait_acks(10)
        power_off(first, domain_of(first))
        assert first.verdict().clean
        assert str(golden) not in run("qemu-img", "info", "--backing-chain", str(folder / "vda.qcow2"))
    finally:
        second.remove()
        golden.unlink()


def test_disks_go_to_several_places_and_a_disk_left_out_is_not_touched(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    specs = (*TWO_DISKS, DiskSpec("vdc", format="raw", size_mib=64, data_mib=4))
    guest = make_guest(GuestSpec("three", disks=specs, rate=15))
    domain = domain_of(guest)
    left = images(domain)["vdc"]
    inode = left.stat().st_ino
    one, other = destination(lab, guest), destination(lab, guest) / "other"
    other.mkdir()

    move(ferry, guest.name, "--disk", f"vda={one}", "--disk", f"vdb={other}")

    assert images(domain) == {"vda": one / "vda.qcow2", "vdb": other / "vdb.img", "vdc": left}
    assert left.stat().st_ino == inode
    guest.wait_acks(30)
    power_off(guest, domain)
    assert guest.verdict().clean


@RUNNING
def test_a_cdrom_stays_and_a_name_of_any_letters_is_fine(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    iso = lab.storage("san1") / f"a disc {via}.iso"
    iso.write_bytes(b"\0" * (1 << 20))
    guest = make_guest(GuestSpec(f"Größe [x] & 'so' 名 {via}", disks=TWO_DISKS, rate=15, cdrom=iso))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    plan = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via, "--plan")
    assert plan.code == 0
    assert "stays where it is" in " ".join(plan.out.split())

    move(ferry, guest.name, "--path", folder, "--via", via)

    assert iso in images(domain).values()
    assert iso.exists()
    guest.wait_acks(30)
    power_off(guest, domain)
    assert guest.verdict().clean
    nothing_of_ours(folder)


def test_nvram_in_the_moved_folder_makes_auto_take_quick_and_travels(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("firmware", disks=TWO_DISKS, rate=15, uefi=True, memory_mib=256))
    domain = domain_of(guest)
    nvram = nvram_of(domain)
    beside = guest.place.images["vda"].parent / "vars.fd"
    power_off(guest, domain)
    subprocess.run(("mv", str(nvram), str(beside)), check=True)
    root = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    element = root.find("./os/nvram")
    assert element is not None
    element.text = str(beside)
    domain.connect().defineXML(etree.tostring(root, encoding="unicode"))
    domain.create()
    guest.wait_writing()
    folder = destination(lab, guest)

    move(ferry, guest.name, "--path", folder)

    job = ferry.jobs()[0]
    assert job["plan"]["technology"] == "quick"
    assert "firmware" in str(job["plan"]["ruled_out"])
    assert nvram_of(domain) == folder / "vars.fd"
    assert (folder / "vars.fd").stat().st_size > 0
    assert not beside.exists()
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict().clean
    domain.create()
    guest.wait_writing()


def test_a_tpm_keeps_its_state_through_quick(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("with tpm", disks=TWO_DISKS, rate=15, tpm=True))
    move(ferry, guest.name, "--path", destination(lab, guest), "--via", "quick")
    guest.wait_acks(20)
    power_off(guest, domain_of(guest))
    assert guest.verdict().clean


def nvram_of(domain: libvirt.virDomain) -> Path:
    root = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return Path((root.findtext("./os/nvram") or "").strip())
