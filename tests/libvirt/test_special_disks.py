"""Disks that are not like others: encrypted ones, and one that the source storage can no longer read."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from lxml.builder import E  # type: ignore[import-not-found]  # lxml-stubs has none for it
from tests.support.job_states import said
from tests.support.seen import TWO_DISKS, destination, images, nothing_of_ours, power_off, run

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.guests.disks import make_image
from vmferry.lab.guests.secrets import define_secret, forget_secret, secret_of
from vmferry.lab.vmferry_command import VmferryCommand
from vmferry.transfer import CHUNK

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
RUNNING = pytest.mark.parametrize("via", ("live", "quick"))
ENCRYPTED = DiskSpec("vda", data_mib=4, encrypted=True)
PLAIN = TWO_DISKS[1]


def is_encrypted(image: Path) -> bool:
    told = json.loads(run("qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(image)))
    return told.get("encrypted") is True


@pytest.mark.parametrize("via", ("live", "quick", "auto"))
def test_an_encrypted_disk_of_a_running_vm_is_refused_with_what_would_help(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"sealed {via}", disks=(ENCRYPTED, PLAIN), rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)

    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via)

    assert ended.code == 3, said(ended)
    assert "disk vda is encrypted, and an overlay would hold the guest's writes in clear" in said(ended)
    assert "shut the VM down" in said(ended)
    assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE) == xml
    assert list(folder.iterdir()) == []
    assert ferry.jobs() == []
    guest.wait_acks(10)


def test_an_encrypted_disk_moves_offline_and_is_encrypted_there_too(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("sealed", disks=(ENCRYPTED, PLAIN), rate=15))
    domain, folder = domain_of(guest), destination(lab, guest)
    guest.wait_acks(30)
    power_off(guest, domain)

    ended = ferry.run("migrate-storage", guest.name, "--path", folder)

    assert ended.code == 0, said(ended)
    assert ferry.jobs()[0]["plan"]["technology"] == "offline"
    assert images(domain, live=False) == {"vda": folder / "vda.qcow2", "vdb": folder / "vdb.img"}
    assert is_encrypted(folder / "vda.qcow2")
    assert guest.verdict().clean, guest.verdict()
    domain.create()
    guest.wait_writing()
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    assert guest.errors() == []


def test_an_encrypted_disk_whose_secret_is_missing_is_refused_until_it_is_there(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, connection: libvirt.virConnect, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("keyless", disks=(ENCRYPTED, PLAIN), rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    secret = secret_of(guest.place.uuid, "vda")
    power_off(guest, domain)
    forget_secret(connection, secret)

    refused = ferry.run("migrate-storage", guest.name, "--path", folder)

    assert refused.code == 3, said(refused)
    assert f"libvirt has no secret {secret}" in said(refused)
    assert f"virsh secret-set-value {secret}" in said(refused)
    assert list(folder.iterdir()) == []
    define_secret(connection, secret)
    assert ferry.run("migrate-storage", guest.name, "--path", folder).code == 0
    domain.create()
    guest.wait_writing()


def is_unreadable(image: Path, offset: int) -> bool:
    """Whether the storage itself refuses the chunk at this offset."""
    descriptor = os.open(image, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(descriptor, [mmap.mmap(-1, CHUNK)], offset)
    except OSError as error:
        return error.errno == errno.EIO
    finally:
        os.close(descriptor)
    return False


def other_user(connection: libvirt.virConnect, image: Path) -> libvirt.virDomain:
    """A VM, never started, whose disk is this image."""
    disk = E.disk(E.driver(type="raw"), E.source(file=str(image)), E.target(dev="vda"), type="file")
    memory = E.memory("64", unit="MiB")
    domain = E.domain(E.name(f"user of {image.parent.name}"), memory, E.os(E.type("hvm")), E.devices(disk), type="qemu")
    return connection.defineXML(etree.tostring(domain, encoding="unicode"))


def test_a_base_on_a_storage_mounted_read_only_is_refused_before_it_cannot_be_removed(
    lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    """Seen: the VM had moved, and the job was stuck at its last step."""
    storage = lab.add_storage("sealed-base", "ext4", 64)
    golden = storage / "golden.img"
    make_image(golden, "raw", size_mib=64, data_mib=4)
    guest = make_guest(GuestSpec("on a sealed base", disks=(DiskSpec("vda", size_mib=64, backing=golden),), rate=20))
    run("mount", "-o", "remount,ro", str(storage))

    ended = ferry.run("migrate-storage", guest.name, "--path", destination(lab, guest), "--remove-bases")

    assert ended.code == 3, said(ended)
    assert f"the source {storage} cannot be written" in said(ended)
    guest.wait_acks(10)


@RUNNING
def test_a_base_that_the_source_can_no_longer_read_undoes_the_job_and_the_guest_writes_on(
    via: str,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    connection: libvirt.virConnect,
    ferry: VmferryCommand,
) -> None:
    """The guest's own writes lie in an overlay on a good storage; of the shared image below it one part is gone."""
    golden = lab.add_storage(f"worn-{via}", "ext4", 256) / "golden.img"
    make_image(golden, "raw", size_mib=256, data_mib=160)
    guest = make_guest(GuestSpec(f"worn {via}", disks=(DiskSpec("vda", backing=golden), PLAIN), rate=15))
    other = other_user(connection, golden)
    domain, folder = domain_of(guest), destination(lab, guest)
    lab.wear_out(f"worn-{via}", left_mib=128)
    guest.wait_acks(20)

    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via)

    other.undefine()
    assert ended.code == 1, said(ended)
    job = ferry.jobs()[0]
    assert (job["state"], job["kind"]) == ("undone", "SourceUnreadable")
    named = re.fullmatch(r"(.+) cannot be read at byte (\d+) \(Input/output error\): repair .+", job["sentence"])
    assert named is not None, job["sentence"]
    assert Path(named[1]) == golden
    assert is_unreadable(golden, int(named[2]))
    assert images(domain) == images(domain, live=False) == guest.place.images
    assert list(folder.iterdir()) == []
    source = guest.place.images["vda"].parent
    assert sorted(source.iterdir()) == sorted(guest.place.images.values())
    nothing_of_ours(source, folder, golden.parent)
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    assert guest.errors() == []
