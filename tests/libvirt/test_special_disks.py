"""Disks that are not like others: encrypted ones, and one that the source storage can no longer read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.libvirt.seen import TWO_DISKS, destination, images, power_off, run

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.ferry import Ended, Ferry
from vmferry.lab.secrets import define_secret, forget_secret, secret_of

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
RUNNING = pytest.mark.parametrize("via", ("live", "quick"))
ENCRYPTED = DiskSpec("vda", data_mib=4, encrypted=True)
PLAIN = TWO_DISKS[1]


def said(ended: Ended) -> str:
    """What a command said, whatever the width of the screen."""
    return " ".join((ended.out + ended.err).split())


def is_encrypted(image: Path) -> bool:
    told = json.loads(run("qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(image)))
    return told.get("encrypted") is True


@pytest.mark.parametrize("via", ("live", "quick", "auto"))
def test_an_encrypted_disk_of_a_running_vm_is_refused_with_what_would_help(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: Ferry
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
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: Ferry
) -> None:
    guest = make_guest(GuestSpec("sealed", disks=(ENCRYPTED, PLAIN), rate=60))
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
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, connection: libvirt.virConnect, ferry: Ferry
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
