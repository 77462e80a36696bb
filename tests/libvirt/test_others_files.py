"""Nothing that anybody else names is removed: whoever it is, and however the file is named.

The kind of P02, P04a and P04b of the field's reports: a base, a template, firmware variables that others need.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from tests.support.job_states import said
from tests.support.namers import NAMERS, Yard, can_start, file_disk, firmware, image, volume_disk, written, yard
from tests.support.seen import images, long, power_off, run

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
NOW = ("volume", "managed save", "json", "hard link")
"""Ways of naming that make test tries; make long tries the others."""
WAYS = [name if name in NOW else long(name) for name in NAMERS]


@pytest.fixture
def place(lab: LabHost, connection: libvirt.virConnect, tmp_path: Path) -> Iterator[Yard]:
    with yard(lab, connection, f"yard-{tmp_path.name[-24:]}") as made:
        yield made


def moved(ferry: VmferryCommand, name: str, to: Path, *words: str) -> None:
    ended = ferry.run("migrate-storage", name, "--path", to, *words)
    assert ended.code == 0, said(ended)
    assert ferry.jobs()[0]["state"] == "done"


@pytest.mark.parametrize("way", WAYS)
def test_a_base_in_the_folder_that_is_left_stays_for_whoever_needs_it(
    way: str, place: Yard, ferry: VmferryCommand
) -> None:
    folder, to = place.folder("a"), place.folder("a", "san2")
    base = written(folder / "base.qcow2")
    mine = place.define("a", file_disk(image(folder / "a.qcow2", base)))
    serves = NAMERS[way](place, base)

    moved(ferry, mine.name(), to, "--via", "offline")

    assert base.exists(), "it is gone"
    serves()
    assert not (folder / "a.qcow2").exists()
    assert (to / "base.qcow2").exists()
    can_start(mine)


@pytest.mark.parametrize("via", ["live", long("quick")])
def test_a_base_stays_for_a_sibling_that_is_a_pools_volume_while_the_guest_runs(
    via: str, lab: LabHost, place: Yard, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"sibling {via}", disks=(DiskSpec("vda", data_mib=4, size_mib=64),), rate=15))
    domain = domain_of(guest)
    guest.wait_acks(20)
    domain.snapshotCreateXML(
        "<domainsnapshot><name>outer</name></domainsnapshot>", libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    )
    base = guest.place.images["vda"]
    clone = place.folder("b") / "clone.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(clone))
    other = place.define("b", volume_disk(place.pool(clone.parent), clone.name))

    moved(ferry, guest.name, place.folder("to", "san2"), "--via", via)

    can_start(other)
    assert sorted(base.parent.iterdir()) == [base]
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()


@pytest.mark.parametrize("words", [(), long("--remove-bases")], ids=str)
def test_a_template_with_overlays_that_no_vm_names_stays(words: Any, place: Yard, ferry: VmferryCommand) -> None:
    template = written(place.folder("templates") / "base.qcow2")
    overlays = [image(template.with_name(f"{n}.qcow2"), template) for n in "xy"]
    mine = place.define("a", file_disk(image(place.folder("a") / "a.qcow2", template)))
    to = place.folder("a", "san2")
    asked = [words] if isinstance(words, str) else []

    moved(ferry, mine.name(), to, *asked)

    assert template.exists()
    for overlay in overlays:
        run("qemu-io", "-r", "-c", "read -P 7 0 1M", str(overlay))
    assert list(place.folder("a").iterdir()) == []
    can_start(mine)


@pytest.mark.long
def test_a_base_in_another_folder_stays_by_default_though_nobody_else_is_known_to_need_it(
    place: Yard, ferry: VmferryCommand
) -> None:
    template = written(place.folder("templates") / "base.qcow2")
    mine = place.define("a", file_disk(image(place.folder("a") / "a.qcow2", template)))
    to = place.folder("a", "san2")
    assert "perhaps a template" in said(ferry.run("migrate-storage", mine.name(), "--path", to, "--plan"))

    moved(ferry, mine.name(), to)

    assert template.exists()
    can_start(mine)


@pytest.mark.long
def test_space_that_was_allocated_beforehand_is_told_of_in_the_plan_with_what_allocates_it_there(
    place: Yard, ferry: VmferryCommand
) -> None:
    disk = place.folder("a") / "a.img"
    run("fallocate", "-l", "8M", str(disk))
    mine = place.define("a", file_disk(disk, format_="raw"))
    to = place.folder("a", "san2")

    planned = said(ferry.run("migrate-storage", mine.name(), "--path", to, "--plan"))

    assert "fallocate -l 8388608" in planned, planned


def test_firmware_variables_that_two_vms_share_are_copied_and_stay(place: Yard, ferry: VmferryCommand) -> None:
    folder, to = place.folder("a"), place.folder("a", "san2")
    variables = firmware(folder / "vars.fd")
    kept = variables.read_bytes()
    mine = place.define("a", file_disk(image(folder / "a.qcow2")), nvram=variables)
    other = place.define("b", file_disk(image(place.folder("b") / "b.qcow2")), nvram=variables)

    planned = said(ferry.run("migrate-storage", mine.name(), "--path", to, "--plan"))
    assert other.name() in planned.partition("At the source")[2], planned

    moved(ferry, mine.name(), to)

    assert variables.exists()
    assert variables.read_bytes() == kept
    assert (to / "vars.fd").read_bytes() == kept
    can_start(other)


@pytest.mark.parametrize("words", ["", long("--keep-source")])
def test_of_a_disk_that_is_a_link_the_data_goes_and_the_link_that_leads_nowhere_then(
    words: str, place: Yard, ferry: VmferryCommand
) -> None:
    data = written(place.folder("data") / "real.qcow2")
    link = place.folder("a") / "a.qcow2"
    link.symlink_to(data)
    mine = place.define("a", file_disk(link))

    moved(ferry, mine.name(), place.folder("a", "san2"), *filter(None, [words]))

    assert not data.exists()
    assert list(link.parent.iterdir()) == []
    left = [path.name.partition(".kept-")[0] for path in data.parent.iterdir()]
    assert left == (["real.qcow2"] if words else [])
    (source,) = ferry.receipt(ferry.jobs()[0]["id"])["sources"]
    assert source["data"] == str(data)
    assert (source["freed_bytes"] >= 1 << 20) is not bool(words)
    can_start(mine)


def test_the_plan_says_file_by_file_what_goes_and_what_stays_and_the_receipt_what_became_of_it(
    place: Yard, ferry: VmferryCommand
) -> None:
    template, folder, to = place.folder("templates") / "base.qcow2", place.folder("a"), place.folder("a", "san2")
    middle = image(folder / "middle.qcow2", written(template))
    mine = place.define("a", file_disk(image(folder / "a.qcow2", middle)))
    place.define("b", file_disk(image(place.folder("b") / "b.qcow2", middle)))

    page = ferry.run("migrate-storage", mine.name(), "--path", to, "--plan")
    asked = ferry.run("migrate-storage", mine.name(), "--path", to, "--plan", "--json")
    moved(ferry, mine.name(), to)

    planned = json.loads(asked.out)["plan"]["sources"]
    fates = {Path(s["path"]).name: (s["fate"], s["role"]) for s in planned}
    assert fates == {
        "a.qcow2": ("removed", "disk vda"),
        "middle.qcow2": ("stays", "base of vda"),
        "base.qcow2": ("stays", "base of vda"),
    }
    told = said(page)
    assert "removed" in told
    assert "needed by VM" in told
    receipt = ferry.receipt(ferry.jobs()[0]["id"])["sources"]
    assert [s["fate"] for s in receipt] == [s["fate"] for s in planned]
    assert [s["freed_bytes"] > 0 for s in receipt] == [True, False, False]
    assert middle.exists()
    assert template.exists()
    assert not (folder / "a.qcow2").exists()


def test_bases_go_too_when_that_is_asked_for_and_nobody_needs_them(place: Yard, ferry: VmferryCommand) -> None:
    template = written(place.folder("templates") / "base.qcow2")
    mine = place.define("a", file_disk(image(place.folder("a") / "a.qcow2", template)))

    moved(ferry, mine.name(), place.folder("a", "san2"), "--remove-bases")

    assert list(template.parent.iterdir()) == []
    can_start(mine)


def test_a_file_that_got_a_user_while_the_job_ran_stays_and_the_receipt_says_so(
    place: Yard, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("late", disks=(DiskSpec("vda", data_mib=16, size_mib=64),), rate=10))
    domain, source = domain_of(guest), guest.place.images["vda"]
    job = ferry.detached(guest.name, "--path", place.folder("to", "san2"), "--via", "live", "--limit", "1MiB")
    wait_for(lambda: ferry.step(job) == "CopyBase", "the copy to begin", 60)
    clone = image(place.folder("b") / "clone.qcow2")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(source), str(clone))
    place.define("b", file_disk(clone))
    assert ferry.run("job", "limit", job, "none").code == 0
    assert ferry.run("job", "watch", job).code == 0

    assert sorted(source.parent.iterdir()) == [source]
    (told,) = ferry.receipt(job)["sources"]
    assert told["fate"] == "stays"
    assert "VM" in told["why"]
    guest.wait_acks(10)
    power_off(guest, domain)
    assert guest.verdict().clean


@pytest.mark.parametrize("how", ["copy", "hard link"])
def test_a_copy_or_link_of_the_jobs_overlay_under_its_own_name_keeps_what_it_lies_on(
    how: str, place: Yard, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """A file is the job's by its path: whoever copies the VM's image in mid-job gives the copy an overlay's name."""
    guest = make_guest(GuestSpec(f"namesake {how}", disks=(DiskSpec("vda", data_mib=16, size_mib=64),), rate=10))
    domain, source = domain_of(guest), guest.place.images["vda"]
    job = ferry.detached(guest.name, "--path", place.folder("to", "san2"), "--via", "live", "--limit", "1MiB")
    wait_for(lambda: ferry.step(job) == "CopyBase", "the copy to begin", 60)
    told = images(domain)["vda"]
    theirs = source.parent.with_name(f"{guest.name} theirs") / told.name
    theirs.parent.mkdir()
    shutil.copyfile(told, theirs) if how == "copy" else theirs.hardlink_to(told)
    assert ferry.run("job", "limit", job, "none").code == 0
    assert ferry.run("job", "watch", job).code == 0

    (outcome,) = ferry.receipt(job)["sources"]
    assert (outcome["fate"], str(theirs) in outcome["why"]) == ("stays", True)
    assert ferry.run("leftovers", "--reap").code == 0
    run("qemu-img", "info", "--backing-chain", str(theirs))
    assert source.exists() and not told.exists()
    guest.wait_acks(10)
    power_off(guest, domain)
    assert guest.verdict().clean


@pytest.mark.parametrize("via", ["live", long("quick")])
def test_an_overlay_of_the_job_that_somebody_clones_meanwhile_stays_with_what_it_lies_on(
    via: str, place: Yard, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """Who asks libvirt for the VM's image while a job runs is told of the job's overlay."""
    guest = make_guest(GuestSpec(f"cloned {via}", disks=(DiskSpec("vda", data_mib=16, size_mib=64),), rate=10))
    domain, source = domain_of(guest), guest.place.images["vda"]
    words = ("--path", place.folder("to", "san2"), "--via", via, "--max-pause", "60s", "--limit", "1MiB")
    job = ferry.detached(guest.name, *words)
    wait_for(lambda: ferry.step(job) == "CopyBase", "the copy to begin", 60)
    told = images(domain)["vda"]
    assert told != source
    clone = image(place.folder("b") / "clone.qcow2")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(told), str(clone))
    other = place.define("b", file_disk(clone))
    assert ferry.run("job", "limit", job, "none").code == 0
    assert ferry.run("job", "watch", job).code == 0

    assert str(told) in ferry.receipt(job)["stayed"]
    assert ferry.run("leftovers", "--reap").code == 0
    assert {source, told} <= set(source.parent.iterdir())
    can_start(other)
    guest.wait_acks(10)
    power_off(guest, domain)
    assert guest.verdict().clean
