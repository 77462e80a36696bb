"""What the documents tell a person to do on their own host works: a move, looking at it, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import libvirt
from lxml import etree
from tests.support.seen import TWO_DISKS, destination, images, nothing_of_ours, power_off

from vmferry.lab import GuestSpec, LabGuest, LabHost
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]


def test_the_way_of_the_readme_and_back_to_the_kept_source(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("web01", disks=TWO_DISKS))
    domain = domain_of(guest)
    old, new = guest.place.images["vda"].parent, destination(lab, guest)

    assert "web01" in _said(ferry, "vms")
    assert str(old / "vda.qcow2") in _said(ferry, "vm", "show", "web01")
    assert "Nothing was changed" in _said(ferry, "migrate-storage", "web01", "--path", new, "--plan")
    assert list(new.iterdir()) == []
    guest.wait_acks(20)
    assert "was moved" in _said(ferry, "migrate-storage", "web01", "--path", new, "--keep-source")
    id_ = ferry.jobs()[0]["id"]
    assert id_ in _said(ferry, "jobs")
    assert "comparing every byte" in _said(ferry, "job", "show", id_[:4])
    assert "kept" in _said(ferry, "job", "receipt", id_[:4])
    assert "nothing was in flight" in _said(ferry, "recover")
    assert "nothing was left" in _said(ferry, "leftovers", "--reap")

    kept = {Path(path).name.split(".")[0]: Path(path) for path in ferry.receipt(id_)["kept"]}
    assert all(path.name.startswith(f"{guest.place.images[t].name}.kept-") for t, path in kept.items())
    power_off(guest, domain)
    _edit(lab, domain, kept)
    domain.create()
    guest.wait_writing()
    assert images(domain) == kept
    nothing_of_ours(new)
    assert guest.errors() == []


def _said(ferry: VmferryCommand, *words: str | Path) -> str:
    ended = ferry.run(*words)
    assert ended.code == 0, ended.out + ended.err
    return ended.out


def _edit(lab: LabHost, domain: libvirt.virDomain, places: dict[str, Path]) -> None:
    """What `virsh edit` would do: give each disk's source another file."""
    root = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
    for target, path in places.items():
        for source in root.iterfind(f"./devices/disk/target[@dev='{target}']/../source"):
            source.set("file", str(path))
    connection = lab.connect()
    try:
        connection.defineXML(etree.tostring(root, encoding="unicode"))
    finally:
        connection.close()
