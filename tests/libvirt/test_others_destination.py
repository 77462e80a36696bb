"""What a destination, or QEMU, cannot bear is found before anything is copied; what it can bear is moved."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from tests.support.job_states import said
from tests.support.seen import destination, images, long, nothing_of_ours, power_off

from vmferry.errors import LabNeeds
from vmferry.hosts.fence import Fence
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.hosts.storage import need_exfat
from vmferry.lab.vmferry_command import VmferryCommand
from vmferry.model import Changes, Definition

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
SMALL = (DiskSpec("vda", size_mib=64, data_mib=4), DiskSpec("vdb", format="raw", size_mib=64, data_mib=4))
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def redefined(domain: libvirt.virDomain, change: Callable[[etree._Element], None]) -> None:
    """Change the definition of a VM that is off, as with `virsh edit`."""
    root = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    change(root)
    domain.connect().defineXML(etree.tostring(root, encoding="unicode"))


def test_a_raw_disk_that_ends_within_a_sector_of_the_destination_is_refused_and_the_cure_cures(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    lab.add_storage("large-sectors", "ext4", 512, sector_bytes=4096)
    guest = make_guest(GuestSpec("odd", disks=SMALL, rate=20))
    domain, folder = domain_of(guest), destination(lab, guest, "large-sectors")
    power_off(guest, domain)
    odd = (64 << 20) + 512
    os.truncate(guest.place.images["vdb"], odd)
    domain.create()
    guest.wait_writing()

    refused = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "live")

    assert refused.code == 3, said(refused)
    assert f"a raw disk of {odd} bytes cannot be opened in {folder}" in said(refused)
    whole = (64 << 20) + 4096
    assert f"virsh blockresize VM DISK {whole}B" in said(refused)
    assert (list(folder.iterdir()), ferry.jobs()) == ([], [])
    domain.blockResize("vdb", whole, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    moved = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "live")
    assert moved.code == 0, said(moved)
    _writes_on(guest, domain)


def test_a_device_that_qemu_does_not_migrate_leaves_the_ways_that_need_no_save(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    def add_nvme(root: etree._Element) -> None:
        line = etree.SubElement(root, f"{{{QEMU}}}commandline", nsmap={"qemu": QEMU})
        for word in ("-device", "nvme,serial=1,addr=0x1e"):
            etree.SubElement(line, f"{{{QEMU}}}arg", value=word)

    guest = make_guest(GuestSpec("unmigratable", disks=SMALL, rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    power_off(guest, domain)
    redefined(domain, add_nvme)
    domain.create()
    guest.wait_writing()

    refused = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "quick")

    assert refused.code == 3, said(refused)
    assert "its memory cannot be saved: QEMU says:" in said(refused)
    assert "nvme" in said(refused)
    assert (list(folder.iterdir()), ferry.jobs()) == ([], [])
    moved = ferry.run("migrate-storage", guest.name, "--path", folder)
    assert moved.code == 0, said(moved)
    assert ferry.jobs()[0]["plan"]["technology"] == "live"
    _writes_on(guest, domain)


@pytest.mark.parametrize("via", ("live", long("quick")))
def test_a_guest_moves_to_a_file_system_without_hard_links(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    try:
        need_exfat()
    except LabNeeds as error:
        pytest.skip(str(error))
    lab.add_storage(f"exfat-{via}", "exfat", 1024)
    disks = tuple(replace(disk, cache="writeback") for disk in SMALL)
    guest = make_guest(GuestSpec(f"linkless {via}", disks=disks, rate=20))
    domain, folder = domain_of(guest), destination(lab, guest, f"exfat-{via}")

    moved = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via)

    assert moved.code == 0, said(moved)
    assert set(images(domain).values()) == {folder / "vda.qcow2", folder / "vdb.img"}
    nothing_of_ours(folder)
    _writes_on(guest, domain)


@pytest.mark.parametrize(
    ("via", "length", "more"),
    [
        ("live", 240, ()),
        ("offline", 233, ("--keep-source",)),
        pytest.param("quick", 255, ("--keep-source",), marks=pytest.mark.long),
    ],
)
def test_an_image_with_a_name_as_long_as_may_be_moves(
    via: str,
    length: int,
    more: tuple[str, ...],
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    ferry: VmferryCommand,
) -> None:
    guest = make_guest(GuestSpec(f"long name {via}", disks=(SMALL[0],), rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    power_off(guest, domain)
    old = guest.place.images["vda"]
    long = old.with_name(f"{'ü' * ((length - 6) // 2)}{'x' * (length % 2)}.qcow2")
    assert len(long.name.encode()) == length
    old.rename(long)
    redefined(domain, lambda root: _rename_image(root, long))
    if via != "offline":
        domain.create()
        guest.wait_writing()

    moved = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via, *more)

    assert moved.code == 0, said(moved)
    assert images(domain, live=False)["vda"] == folder / long.name
    assert len(list(long.parent.iterdir())) == (1 if more else 0)
    if via == "offline":
        domain.create()
        guest.wait_writing()
    _writes_on(guest, domain)


@pytest.mark.parametrize("via", ("offline", long("live")))
def test_pools_over_both_folders_list_what_is_there_after_the_move(
    via: str,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    connection: libvirt.virConnect,
    ferry: VmferryCommand,
) -> None:
    guest = make_guest(GuestSpec(f"pooled {via}", disks=(SMALL[0],), rate=10))
    domain, folder = domain_of(guest), destination(lab, guest)
    places = {"left": guest.place.images["vda"].parent, "taken": folder, "beside": lab.storage("san2")}
    pools = {name: _pool(connection, f"{name}-{via}", place) for name, place in places.items()}
    if via == "offline":
        power_off(guest, domain)
    (places["beside"] / "unseen.img").touch()
    try:
        moved = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via)
        assert moved.code == 0, said(moved)
        assert (pools["left"].listVolumes(), pools["taken"].listVolumes()) == ([], ["vda.qcow2"])
        assert "unseen.img" not in pools["beside"].listVolumes()
    finally:
        (places["beside"] / "unseen.img").unlink()
        for pool in pools.values():
            pool.destroy()


def _pool(connection: libvirt.virConnect, name: str, place: Path) -> libvirt.virStoragePool:
    xml = f"<pool type='dir'><name>{name}</name><target><path>{place}</path></target></pool>"
    return connection.storagePoolCreateXML(xml, 0)


def _rename_image(root: etree._Element, to: Path) -> None:
    for source in root.iterfind("devices/disk/source"):
        source.set("file", str(to))


def test_a_definition_that_the_other_libvirt_does_not_take_is_told_in_its_words(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf
) -> None:
    """As between two versions: what the newer one has written down the older one does not know."""
    guest = make_guest(GuestSpec("newer", disks=(SMALL[0],), rate=5))
    domain = domain_of(guest)
    host = LibvirtHosts(Fence(lab.at / "fence")).open(lab.uri)
    written = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    known = [vm.name for vm in host.vms()]

    assert host.refusal(Definition(guest.place.uuid, written), Changes()) == ""
    for own, told in (
        ("<watchdog model='itco' action='reset'/>", "itco"),
        ("<sound model='hologram'/>", "hologram"),
        ("<controller type='teleport'/>", "teleport"),
    ):
        newer = Definition(guest.place.uuid, written.replace("</devices>", f"{own}</devices>"))
        assert told in host.refusal(newer, Changes())
    gone = written.replace(str(guest.place.images["vda"]), "/none/gone.qcow2")
    assert host.refusal(Definition(guest.place.uuid, gone), Changes()) == ""
    assert [vm.name for vm in host.vms()] == known


def _writes_on(guest: LabGuest, domain: libvirt.virDomain) -> None:
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    assert guest.errors() == []
