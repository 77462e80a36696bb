"""What a VM needs to be started again goes missing while nobody looks: named before, and the guest comes back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from tests.support.job_states import said
from tests.support.seen import TWO_DISKS, destination, images, long, nothing_of_ours, power_off
from tests.support.starts import restart, told

from vmferry.lab import GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.guests.disks import make_image
from vmferry.lab.guests.domain import LEAST_UEFI_MIB
from vmferry.lab.vmferry_command import ENDS, VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
HOOK = """#!/bin/sh
[ "$2 $3" = "{moment}" ] || exit 0
rm -f '{gone}'
"""


@pytest.fixture
def disc(lab: LabHost, tmp_path: Path) -> Path:
    """A disc of its own for a guest's drive."""
    disc = lab.storage("san1") / f"{tmp_path.name}.iso"
    make_image(disc, "raw", size_mib=2, data_mib=1)
    return disc


def connected(lab: LabHost, guest: LabGuest) -> libvirt.virDomain:
    """libvirt's view of a guest once libvirtd was started anew."""
    return lab.connect().lookupByName(guest.name)


@contextmanager
def removed_at(host: LabHost, moment: str, gone: Path) -> Iterator[None]:
    """At this moment of libvirt's hooks, "stopped end" for one, the file goes."""
    hooks = host.at / "etc/hooks"
    hooks.mkdir()
    try:
        (hooks / "qemu").write_text(HOOK.format(moment=moment, gone=gone))
        (hooks / "qemu").chmod(0o755)
        restart(host)  # it looks for hooks as it starts
        yield
    finally:
        shutil.rmtree(hooks)


def test_a_disc_that_is_gone_is_named_before_anything_is_done(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand, disc: Path
) -> None:
    guest = make_guest(GuestSpec("discless", disks=TWO_DISKS, rate=20, cdrom=disc))
    folder = destination(lab, guest)
    disc.unlink()

    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "quick")

    assert ended.code == 3, said(ended)
    assert f"{disc}" in said(ended)
    assert f"virsh change-media '{guest.name}' sdz --eject" in said(ended)
    assert ferry.jobs() == []
    guest.wait_acks(10)


def test_a_disc_that_goes_in_mid_job_undoes_it_with_the_guest_running_on(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand, disc: Path
) -> None:
    guest = make_guest(GuestSpec("discgoes", disks=TWO_DISKS, rate=20, cdrom=disc))
    folder = destination(lab, guest)

    job = ferry.detached(guest.name, "--path", folder, "--via", "quick", "--limit", "4M")
    wait_for(lambda: ferry.step(job) == "CopyBase", "the base to be copied", 60)
    disc.unlink()
    ferry.run("job", "limit", job, "none")
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 120)

    ended = ferry.job(job)
    assert (ended["state"], ended["kind"]) == ("undone", "CannotStart"), ended["sentence"]
    assert f"the disc {disc} in sdz" in ended["sentence"]
    assert f"virsh change-media '{guest.name}' sdz --eject" in ended["sentence"]
    assert [phase for phase in ended["journal"] if phase["act"] == "do" and phase["step"] == "CopyLast"] == []
    _unharmed(guest, domain_of(guest), folder)


@pytest.mark.parametrize("moment", ("stopped end", long("restore begin")))
def test_a_disc_that_goes_while_the_guest_stands_keeps_nobody_from_running(
    moment: str, lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand, disc: Path
) -> None:
    """With the file gone before libvirt looks the move goes on; after that it goes back. The drive is empty then."""
    guest = make_guest(GuestSpec(f"ejected {moment}", disks=TWO_DISKS, rate=20, cdrom=disc))
    folder = destination(lab, guest)

    with removed_at(lab, moment, disc):
        ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "quick")

    job = ferry.jobs()[0]
    assert (ended.code, job["state"]) == ((0, "done") if moment == "stopped end" else (1, "undone")), said(ended)
    shown = said(ferry.run("job", "receipt" if ended.code == 0 else "show", job["id"]))
    assert "".join(f"{disc} (sdz)".split()) in "".join(shown.split())
    _writes_on(guest, connected(lab, guest))


@pytest.mark.long
def test_a_kernel_that_goes_while_the_guest_stands_is_left_out_and_the_guest_runs_on(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("kernelless", disks=TWO_DISKS, rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    power_off(guest, domain)
    root = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    named = root.find("os/kernel")
    assert named is not None
    kernel = guest.place.folder / "kernel"
    shutil.copy(named.text or "", kernel)
    named.text = str(kernel)
    domain.connect().defineXML(etree.tostring(root, encoding="unicode"))
    domain.create()
    guest.wait_writing()
    content = kernel.read_bytes()
    kernel.unlink()
    planned = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "quick", "--plan")
    assert planned.code == 3, said(planned)
    assert f"the kernel {kernel}" in said(planned)
    kernel.write_bytes(content)

    with removed_at(lab, "stopped end", kernel):
        ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "quick")

    assert ended.code == 0, said(ended)
    assert str(kernel) in str(ferry.receipt(ferry.jobs()[0]["id"])["ejected"])
    moved = connected(lab, guest)
    assert str(kernel) in moved.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    _writes_on(guest, moved)


def test_what_goes_while_the_guest_stands_and_is_needed_is_waited_for(
    lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    """QEMU cannot be started without the pipe of a serial port: the memory is kept, and loaded once it is back."""
    guest = make_guest(GuestSpec("pipeless", disks=TWO_DISKS, rate=20))
    folder, pipe = destination(lab, guest), guest.place.commands.with_name("commands.in")

    with removed_at(lab, "stopped end", pipe):
        job = ferry.detached(guest.name, "--path", folder, "--via", "quick")
        wait_for(lambda: told(ferry, job, "its memory is kept in"), "the job to say what it needs", 90)
        assert str(guest.place.commands) in str(ferry.job(job)["progress"])
        os.mkfifo(pipe)
        wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 90)

    assert ferry.state(job) == "undone", ferry.job(job)["sentence"]
    _writes_on(guest, connected(lab, guest))
    nothing_of_ours(folder, guest.place.images["vda"].parent)


def test_a_network_that_was_stopped_is_named_where_memory_is_saved_and_told_where_it_is_not(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, connection: libvirt.virConnect, ferry: VmferryCommand
) -> None:
    network = connection.networkCreateXML("<network><name>stopped lan</name><bridge name='vfstopped'/></network>")
    guest = make_guest(GuestSpec("networked", disks=(TWO_DISKS[0],), rate=20))
    domain, folder = domain_of(guest), destination(lab, guest)
    xml = "<interface type='network'><source network='stopped lan'/><model type='virtio'/></interface>"
    domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    network.destroy()

    move = ("migrate-storage", guest.name, "--path", folder, "--via")
    refused = ferry.run(*move, "quick")
    assert refused.code == 3, said(refused)
    assert "since this is not there: the network stopped lan" in said(refused)
    assert "virsh net-start 'stopped lan', or use --via live" in said(refused).replace("`", "")
    moved = ferry.run(*move, "live")
    assert moved.code == 0, said(moved)
    _writes_on(guest, domain)


@pytest.mark.long
def test_firmware_variables_that_are_gone_are_named_before_they_would_be_made_anew(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """A start would take fresh ones from the template, without the guest's boot entries and keys."""
    spec = GuestSpec("forgets", disks=(TWO_DISKS[0],), rate=10, uefi=True, memory_mib=LEAST_UEFI_MIB)
    guest = make_guest(spec)
    domain, folder = domain_of(guest), destination(lab, guest)
    guest.place.nvram.unlink()

    for via, code in (("quick", 3), ("live", 0)):
        planned = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", via, "--plan")
        assert planned.code == code, said(planned)
        assert f"since this is not there: the firmware's variables {guest.place.nvram}" in said(planned)

    guest.wait_acks(10)
    power_off(guest, domain)
    planned = ferry.run("migrate-storage", guest.name, "--path", folder, "--plan")
    assert planned.code == 0, said(planned)
    assert f"the firmware's variables {guest.place.nvram} are not there" in said(planned)


@pytest.mark.long
def test_no_cure_of_a_real_plan_names_a_way_that_it_calls_impossible(
    lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    """Variables beside the disks go along, which a mirror cannot; so `--via live` is no way out of a long pause."""
    guest = make_guest(GuestSpec("no way", disks=(TWO_DISKS[0],), rate=10, uefi=True, memory_mib=LEAST_UEFI_MIB))
    folder = destination(lab, guest)

    planned = ferry.run("migrate-storage", guest.name, "--path", folder, "--max-pause", "1ms", "--plan", "--json")

    told = json.loads(planned.out.splitlines()[-1])
    plan = told.get("plan", told)
    assert planned.code == 3, said(planned)
    assert "live" in {ruled["technology"] for ruled in plan["ruled_out"]}
    cures = [finding["cure"] for finding in plan["findings"] if finding["severity"] == "blocker"]
    assert any("--max-pause" in cure for cure in cures)
    assert not any("--via live" in cure for cure in cures)


def test_the_plan_of_a_vm_that_a_job_holds_says_what_submitting_would(
    lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("held", disks=TWO_DISKS, rate=10))
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--limit", "1M")
    wait_for(lambda: ferry.step(job) == "CopyBase", "the base to be copied", 60)

    asked = [ferry.run("migrate-storage", guest.name, "--path", folder, *words) for words in ((), ("--plan",))]

    assert [ended.code for ended in asked] == [3, 3]
    assert all(job in said(ended) and f"vmferry job cancel {job}" in said(ended) for ended in asked), asked
    assert len(ferry.jobs()) == 1
    ferry.run("job", "cancel", job)
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 120)


def _unharmed(guest: LabGuest, domain: libvirt.virDomain, folder: Path) -> None:
    """It runs where it was, with all that it wrote, and nothing of the job is left."""
    own = {t: p for t, p in images(domain).items() if t in guest.place.images}
    assert own == guest.place.images
    assert list(folder.iterdir()) == []
    _writes_on(guest, domain)
    nothing_of_ours(folder, guest.place.images["vda"].parent)


def _writes_on(guest: LabGuest, domain: libvirt.virDomain) -> None:
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    assert guest.errors() == []
