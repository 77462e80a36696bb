"""What other people and tools do to a VM in the midst of a job: its writes, their snapshots and its memory are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from lxml import etree
from tests.support.seen import TWO_DISKS, check_image, destination, images, long, nothing_of_ours, power_off, run
from tests.support.torture_acts import DEFINITION

from vmferry.lab import GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import ENDS, VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
STEADY = GuestSpec("steady", disks=TWO_DISKS, rate=40)
DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
LIVE_AND_QUICK = pytest.mark.parametrize("via", ("live", "quick"))
ONE_OF_TWO = pytest.mark.parametrize("via", ("live", long("quick")))


@contextmanager
def standing(ferry: VmferryCommand, guest: LabGuest, folder: Path, via: str, step: str = "CopyBase") -> Iterator[str]:
    """A job that stands still in a step while somebody else acts; then it goes on to its end."""
    words = ("--path", folder, "--via", via, "--max-pause", "60s", "--limit", "6MiB")
    job = ferry.detached(guest.name, *words)
    if step == "Rounds":  # there is none that is small enough: it stays there
        assert ferry.run("job", "limit", job, "6MiB", "--max-pause", "1ms").code == 0
    wait_for(lambda: ferry.step(job) == step, f"{step} of the job", 120)
    assert ferry.run("job", "suspend", job).code == 0
    wait_for(lambda: ferry.state(job) == "paused", "the job to stand still", 60)
    yield job
    ferry.run("job", "limit", job, "none")
    resumed = ferry.run("job", "resume", job)
    assert resumed.code == 0 or ferry.state(job) in ("undoing", *ENDS), resumed.err  # seen while it stood
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 120)


def snapshot_all(guest: LabGuest, domain: libvirt.virDomain, name: str, flags: int = DISK_ONLY) -> dict[str, Path]:
    """`virsh snapshot-create-as VM NAME --disk-only --no-metadata`, as backup tools do it."""
    made = {target: image.parent / f"{target}.{name}" for target, image in guest.place.images.items()}
    listed = "".join(f"<disk name='{t}'><source file='{p}'/></disk>" for t, p in made.items())
    domain.snapshotCreateXML(f"<domainsnapshot><name>{name}</name><disks>{listed}</disks></domainsnapshot>", flags)
    return made


def merge(domain: libvirt.virDomain, target: str, base: str | None = None, top: str | None = None) -> None:
    """`virsh blockcommit VM TARGET --active --pivot`."""
    domain.blockCommit(target, base, top, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    pivot(domain, target)


def pivot(domain: libvirt.virDomain, target: str) -> None:
    """`virsh blockjob VM TARGET --pivot`, once it is ready."""

    def ready() -> bool:
        mirror = etree.fromstring(domain.XMLDesc(0)).find(f"./devices/disk/target[@dev='{target}']/../mirror")
        return mirror is not None and mirror.get("ready") == "yes"

    wait_for(ready, f"the block job of {target}", 60)
    domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    wait_for(lambda: not domain.blockJobInfo(target, 0), "the merge to end", 30)


def is_whole(guest: LabGuest, domain: libvirt.virDomain) -> None:
    """Every acknowledged write is there, and it can be started again."""
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    domain.create()
    guest.wait_writing()
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()


def chain(image: Path) -> list[Path]:
    told = run("qemu-img", "info", "-U", "--backing-chain", str(image)).splitlines()
    return [Path(line.partition(": ")[2]) for line in told if line.startswith("image: ")]


@LIVE_AND_QUICK
def test_a_snapshot_that_a_backup_tool_takes_in_mid_job_stays_its_own_and_no_write_is_lost(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via) as job:
        made = snapshot_all(guest, domain, "backup")
        guest.wait_acks(40)

    told = ferry.job(job)
    assert told["state"] == "undone", told
    assert str(made["vda"]) in told["sentence"], told["sentence"]
    assert images(domain) == images(domain, live=False) == made
    assert {t: chain(top) for t, top in made.items()} == {t: [made[t], guest.place.images[t]] for t in made}
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    for target in made:  # what the tool does once it has read what it wanted
        merge(domain, target)
    assert images(domain) == images(domain, live=False) == guest.place.images
    is_whole(guest, domain)
    check_image(guest.place.images["vda"])


@ONE_OF_TWO
def test_overlays_that_somebody_merges_in_mid_job_are_not_missed_and_no_write_is_lost(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via, "Rounds") as job:
        merge(domain, "vda")
        guest.wait_acks(40)

    told = ferry.job(job)
    assert told["state"] == "undone", told
    assert str(guest.place.images["vda"]) in told["sentence"], told["sentence"]
    assert images(domain) == images(domain, live=False) == guest.place.images
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    is_whole(guest, domain)
    check_image(guest.place.images["vda"])


def undone(ferry: VmferryCommand, job: str, *said: str | Path) -> None:
    told = ferry.job(job)
    assert told["state"] == "undone", told
    for words in said:
        assert str(words) in told["sentence"], told["sentence"]


def now(ferry: VmferryCommand, job: str) -> str:
    """What a job says that it does, or waits for."""
    return str(ferry.job(job)["progress"]["now"])


@pytest.mark.long
@LIVE_AND_QUICK
def test_an_internal_snapshot_that_a_person_takes_in_mid_job_is_kept_until_they_delete_it(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    qcow2s = tuple(disk for disk in TWO_DISKS if disk.format == "qcow2")
    guest = make_guest(GuestSpec("steady", disks=qcow2s, rate=40))
    domain = domain_of(guest)
    folder = destination(lab, guest)
    words = ("--path", folder, "--via", via, "--max-pause", "60s", "--limit", "4MiB")
    job = ferry.detached(guest.name, *words)
    wait_for(lambda: ferry.step(job) == "CopyBase", "the copy of the base", 120)
    snapshot = domain.snapshotCreateXML("<domainsnapshot><name>mine</name></domainsnapshot>", 0)
    guest.wait_acks(20)
    ferry.run("job", "limit", job, "none")
    wait_for(lambda: "'mine'" in now(ferry, job) or "snapshot mine" in now(ferry, job), "the job to say so", 120)
    assert ferry.state(job) == "undoing"
    assert "snapshot-delete" in now(ferry, job)
    assert "mine" in run("qemu-img", "snapshot", "-U", "-l", str(images(domain)["vda"]))
    guest.wait_acks(20)  # it runs meanwhile

    snapshot.delete()
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 60)
    undone(ferry, job, "mine")
    assert images(domain) == images(domain, live=False) == guest.place.images
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    is_whole(guest, domain)


@ONE_OF_TWO
def test_the_writes_of_a_disk_that_is_detached_in_mid_job_end_in_its_image(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via) as job:
        guest.stop_writing()
        disk = etree.fromstring(domain.XMLDesc(0)).find("./devices/disk/target[@dev='vdb']/..")
        assert disk is not None
        domain.detachDeviceFlags(etree.tostring(disk, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
        wait_for(lambda: "vdb" not in images(domain), "the disk to be gone", 60)

    undone(ferry, job, "disk vdb was detached")
    assert images(domain) == {"vda": guest.place.images["vda"]}
    assert images(domain, live=False) == guest.place.images
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    domain.destroy()
    assert guest.verdict(guest.place.images).clean, guest.verdict(guest.place.images)
    domain.create()
    guest.wait_writing()


def test_a_disk_whose_mirror_somebody_pivots_by_hand_stays_where_it_is_and_the_job_goes_on(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """Its newest writes are in the copy alone: an undo would remove the file that the VM runs on."""
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", "live", "--limit", "6MiB")
    wait_for(lambda: ferry.step(job) == "Mirror", "the mirrors", 120)

    def pivoted() -> bool:
        with suppress(libvirt.libvirtError):
            domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        return images(domain)["vda"].parent == folder

    wait_for(pivoted, "vda to be pivoted", 120)
    ferry.run("job", "limit", job, "none")
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 120)

    moved = {target: folder / image.name for target, image in guest.place.images.items()}
    assert ferry.state(job) == "done", ferry.job(job)
    assert images(domain) == images(domain, live=False) == moved
    guest.wait_acks(20)
    power_off(guest, domain)
    assert guest.verdict(moved).clean, guest.verdict(moved)


@pytest.mark.parametrize("how", ("removed", "replaced", "written"))
@LIVE_AND_QUICK
def test_a_copy_that_somebody_removes_replaces_or_writes_to_is_not_switched_to(
    via: str, how: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """The VM would run on a file that has no name, and start from another one; the source would be gone."""
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via, "Rounds") as job:
        copy = folder / guest.place.images["vda"].name
        if how == "written":
            with copy.open("r+b") as file:
                first = file.read(1)
                file.seek(0)
                file.write(first)
        else:
            aside = copy.rename(copy.with_name("aside"))
        if how == "replaced":
            shutil.copy(aside, copy)
        ferry.run("job", "limit", job, "none", "--max-pause", "60s")

    told = "somebody wrote to" if how == "written" else "is not the file that was copied and compared"
    undone(ferry, job, f"{copy}", told)
    assert images(domain) == images(domain, live=False) == guest.place.images
    is_whole(guest, domain)


def test_no_copy_goes_while_the_source_of_a_vm_that_runs_is_gone_and_the_cure_that_is_told_works(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """QEMU alone has an image that somebody removed: what is merged into that is gone with QEMU."""
    guest = make_guest(replace(STEADY, name="sourceless"))  # what is left of it names its files
    domain = domain_of(guest)
    folder, source = destination(lab, guest), guest.place.images["vda"]
    with standing(ferry, guest, folder, "live", "Rounds") as job:
        source.unlink()
        ferry.run("job", "cancel", job)
        wait_for(lambda: ferry.state(job) == "stuck", "the job to say it", 120)
        assert "was removed or replaced while" in ferry.job(job)["sentence"], ferry.job(job)
        assert (folder / source.name).exists()
        fresh = source.with_name("fresh.qcow2")
        disk = f"<disk type='file'><driver type='qcow2'/><source file='{fresh}'/></disk>"
        domain.blockCopy("vda", disk, None, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        pivot(domain, "vda")
        assert ferry.run("job", "retry", job).code == 0

    assert ferry.state(job) == "undone", ferry.job(job)
    assert images(domain)["vda"] == fresh
    guest.wait_acks(20)
    power_off(guest, domain)
    now = {**guest.place.images, "vda": fresh}
    assert guest.verdict(now).clean, guest.verdict(now)
    nothing_of_ours(folder, source.parent)


@pytest.mark.parametrize("what", ("base", "overlay", "folder"))
@ONE_OF_TWO
def test_another_file_under_the_name_of_the_vms_own_is_neither_folded_nor_merged_into(
    via: str, what: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """Seen: 549 acknowledged writes gone with "done", after an older copy of a closed overlay was put in its place."""
    guest = make_guest(replace(STEADY, name=f"swapped {what} {via}"))  # what is left of it names its files
    domain = domain_of(guest)
    folder, source = destination(lab, guest), guest.place.images["vda"]
    with standing(ferry, guest, folder, via, "Rounds") as job:
        active = images(domain)["vda"]
        number = int(active.name.rpartition(".r")[2].partition(".")[0])
        assert number, "a round has been closed"
        closed = active.with_name(active.name.replace(f".r{number}.", f".r{number - 1}."))
        path = {"base": source, "overlay": closed, "folder": source.parent}[what]
        aside = path.rename(path.with_name(f"{path.name}.aside"))
        shutil.copytree(aside, path) if what == "folder" else shutil.copyfile(aside, path)
        theirs = path.stat() if what != "folder" else (path / source.name).stat()
        ferry.run("job", "limit", job, "none", "--max-pause", "60s")
        ferry.run("job", "resume", job)
        wait_for(lambda: ferry.state(job) == "stuck", "the job to ask", 120)
        assert "was removed or replaced while" in ferry.job(job)["sentence"], ferry.job(job)
        now = path.stat() if what != "folder" else (path / source.name).stat()
        assert (now.st_ino, now.st_mtime_ns, now.st_size) == (theirs.st_ino, theirs.st_mtime_ns, theirs.st_size)
        path.rename(path.with_name(f"{path.name}.theirs"))
        aside.rename(path)
        assert ferry.run("job", "retry", job).code == 0
        wait_for(lambda: ferry.state(job) == "undone", "the job to be undone", 120)

    assert images(domain) == images(domain, live=False) == guest.place.images
    is_whole(guest, domain)


@pytest.mark.parametrize("how", ("destroyed", "powered off"))
@ONE_OF_TWO
def test_what_was_written_is_merged_when_the_definition_is_put_back_and_the_guest_stops(
    via: str, how: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """`virsh define` of a file, as Ansible does it. Seen: "all that it wrote is kept", and 241 writes gone."""
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder, before = destination(lab, guest), domain.XMLDesc(DEFINITION)
    with standing(ferry, guest, folder, via, "CopyBase") as job:
        guest.wait_acks(20)
        domain.connect().defineXML(before)
        domain.destroy() if how == "destroyed" else power_off(guest, domain)

    undone(ferry, job, "stopped running while it was being moved")
    assert images(domain, live=False) == guest.place.images
    assert guest.verdict().clean, guest.verdict()
    nothing_of_ours(folder, guest.place.images["vda"].parent)


@ONE_OF_TWO
def test_what_was_written_is_kept_and_named_when_the_vm_was_started_without_it(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(replace(STEADY, name=f"left out {via}"))  # what is left of it names its files
    domain = domain_of(guest)
    folder, before = destination(lab, guest), domain.XMLDesc(DEFINITION)
    with standing(ferry, guest, folder, via, "CopyBase") as job:
        guest.wait_acks(20)
        overlays = images(domain)
        domain.connect().defineXML(before)
        domain.destroy()
        domain.create()

    undone(ferry, job, "what the VM had written since the move began is kept in", *overlays.values())
    assert ferry.run("leftovers", "--reap").code == 0
    assert images(domain) == guest.place.images
    for overlay in overlays.values():
        run("qemu-img", "info", "-U", "--backing-chain", str(overlay))
    guest.wait_acks(10)


@LIVE_AND_QUICK
def test_a_copy_that_somebody_has_cloned_stays_when_the_job_is_undone(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(replace(STEADY, name=f"cloned copy {via}"))  # what is left of it names its files
    domain = domain_of(guest)
    folder = destination(lab, guest)
    copy, clone = folder / guest.place.images["vda"].name, folder / "theirs.qcow2"
    with standing(ferry, guest, folder, via, "Rounds") as job:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(copy), str(clone))
        ferry.run("job", "cancel", job)

    undone(ferry, job, "", str(copy))
    run("qemu-img", "check", "-q", str(copy))
    run("qemu-img", "info", "--backing-chain", str(clone))
    assert images(domain) == images(domain, live=False) == guest.place.images
    is_whole(guest, domain)


@LIVE_AND_QUICK
def test_a_checkpoint_that_is_taken_in_mid_job_is_as_good_as_any_after_the_undo(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """Seen: after a round more an incremental backup since it succeeded, and lacked 332 of 332 blocks."""
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via, "Rounds") as job:
        domain.checkpointCreateXML("<domaincheckpoint><name>monday</name></domaincheckpoint>")
        ferry.run("job", "limit", job, "none", "--max-pause", "60s")

    undone(ferry, job, "the checkpoint monday was taken")
    assert [each.getName() for each in domain.listAllCheckpoints()] == ["monday"]
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    is_whole(guest, domain)


@pytest.mark.long
@LIVE_AND_QUICK
def test_memory_that_libvirt_saves_in_mid_job_is_loaded_at_the_next_start(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """`virsh managedsave`, as libvirt-guests does it when a host is shut down."""
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via) as job:
        domain.managedSave(0)

    undone(ferry, job, "stopped running")
    assert domain.hasManagedSaveImage()
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    before = guest.acks()[-1]
    domain.create()
    guest.wait_acks(30)
    assert guest.acks()[-1].disk and before in guest.acks()
    assert images(domain) == images(domain, live=False) == guest.place.images
    assert guest.errors() == []
    is_whole(guest, domain)


@pytest.mark.long
@LIVE_AND_QUICK
def test_memory_that_a_person_saves_to_a_file_in_mid_job_stays_usable(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    kept = lab.at / f"kept {via}.save"
    job = ferry.detached(guest.name, "--path", folder, "--via", via, "--max-pause", "60s", "--limit", "6MiB")
    wait_for(lambda: ferry.step(job) == "CopyBase", "the copy of the base", 120)
    domain.save(str(kept))
    ferry.run("job", "limit", job, "none")
    wait_for(lambda: "virsh restore" in now(ferry, job), "the job to say what it waits for", 120)
    assert ferry.state(job) == "undoing"

    domain.connect().restore(str(kept))
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 120)
    undone(ferry, job)
    guest.wait_acks(30)
    assert images(domain) == images(domain, live=False) == guest.place.images
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    assert guest.errors() == []
    is_whole(guest, domain)


@pytest.mark.long
@pytest.mark.parametrize("when", ("before", "meanwhile"))
@LIVE_AND_QUICK
def test_an_image_that_a_person_chose_for_the_next_start_is_not_taken_back(
    via: str, when: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    other = guest.place.images["vdb"].with_name("other.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", str(other), "128M")

    def choose() -> None:
        root = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))
        disk = root.find("./devices/disk/target[@dev='vdb']/..")
        assert disk is not None
        disk.find("source").set("file", str(other))  # type: ignore[union-attr] # the guest has it
        disk.find("driver").set("type", "qcow2")  # type: ignore[union-attr]
        domain.connect().defineXML(etree.tostring(root, encoding="unicode"))

    if when == "before":
        choose()
    with standing(ferry, guest, folder, via) as job:
        if when == "meanwhile":
            choose()

    moved = {target: folder / image.name for target, image in guest.place.images.items()}
    assert ferry.state(job) == "done", ferry.job(job)
    assert images(domain) == moved
    assert images(domain, live=False) == moved | {"vdb": other}
    assert other.exists()
    assert "vdb" in ferry.run("job", "receipt", job).out.partition("next start")[2]
    guest.wait_acks(20)
    guest.stop_writing()
    domain.destroy()
    assert guest.verdict(moved).clean, guest.verdict(moved)


def pull(domain: libvirt.virDomain) -> None:
    domain.blockPull("vda", 0, 0)
    wait_for(lambda: not domain.blockJobInfo("vda", 0), "the pull to end", 60)


def resize(domain: libvirt.virDomain) -> None:
    domain.blockResize("vda", 300 << 20, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def snapshot_one(domain: libvirt.virDomain) -> None:
    """With its metadata kept, of one disk of two."""
    file = images(domain)["vda"].with_name("vda.one")
    disk = f"<disk name='vda' snapshot='external'><source file='{file}'/></disk>"
    listed = f"{disk}<disk name='vdb' snapshot='no'/>"
    text = f"<domainsnapshot><name>one</name><disks>{listed}</disks></domainsnapshot>"
    domain.snapshotCreateXML(text, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)


def snapshot_twice(domain: libvirt.virDomain) -> None:
    for name in ("first", "second"):
        files = {target: image.with_name(f"{target}.{name}") for target, image in images(domain).items()}
        listed = "".join(f"<disk name='{target}'><source file='{file}'/></disk>" for target, file in files.items())
        domain.snapshotCreateXML(f"<domainsnapshot><disks>{listed}</disks></domainsnapshot>", DISK_ONLY)


@pytest.mark.long
@pytest.mark.parametrize(
    ("act", "said"),
    [
        (pull, "somebody merged it"),
        (resize, "was resized from"),
        (snapshot_one, "vda.one"),
        (snapshot_twice, "which somebody put on top"),
    ],
)
def test_whatever_else_changes_the_chain_in_mid_job_undoes_the_job_and_loses_nothing(
    act: Callable[[libvirt.virDomain], None],
    said: str,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    ferry: VmferryCommand,
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, "live") as job:
        act(domain)
        guest.wait_acks(20)

    undone(ferry, job, said)
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    for image in images(domain).values():
        assert job not in run("qemu-img", "info", "-U", "--backing-chain", str(image))
    assert job not in "".join(s.getXMLDesc(0) for s in domain.listAllSnapshots())
    is_whole(guest, domain)


@pytest.mark.long
def test_somebody_elses_mirror_is_neither_taken_for_the_jobs_nor_ended(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    theirs = guest.place.images["vda"].with_name("their copy.qcow2")
    with standing(ferry, guest, folder, "live") as job:
        text = f"<disk type='file'><source file='{theirs}'/><driver type='qcow2'/></disk>"
        domain.blockCopy("vda", text, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
        ferry.run("job", "limit", job, "none")
        ferry.run("job", "resume", job)
        wait_for(lambda: "somebody's block job (copy)" in now(ferry, job), "the job to say what it waits for", 120)
        domain.blockJobAbort("vda", 0)

    undone(ferry, job, theirs)
    assert images(domain) == images(domain, live=False) == guest.place.images
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    is_whole(guest, domain)


@pytest.mark.long
@LIVE_AND_QUICK
def test_a_guest_that_a_person_pauses_as_it_is_cut_over_stays_paused(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", folder, "--via", via, "--max-pause", "60s")
    step = "Save" if via == "quick" else "Mirror"
    wait_for(lambda: step in ferry.steps(job), f"{step} of the job", 120)
    domain.suspend()
    wait_for(lambda: ferry.state(job) in ENDS, "the job to end", 120)
    assert domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    domain.resume()
    is_whole(guest, domain)


@pytest.mark.long
def test_a_vm_that_is_stopped_and_forgotten_in_mid_job_leaves_its_disks_whole(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, "live") as job:
        guest.stop_writing()
        domain.destroy()
        domain.undefine()

    undone(ferry, job, "all that it wrote is in its images")
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    assert guest.verdict(guest.place.images).clean


@pytest.mark.parametrize("via", (long("live"), "quick"))
def test_a_vm_that_is_undefined_while_it_runs_moves_and_is_not_defined_again(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """Nothing but the job's saved state knows it while its memory is saved."""
    guest = make_guest(STEADY)
    domain = domain_of(guest)
    folder = destination(lab, guest)
    with standing(ferry, guest, folder, via) as job:
        domain.undefine()

    assert (ferry.state(job), domain.isPersistent()) == ("done", 0), ferry.job(job)
    guest.wait_acks(20)
    moved = images(domain)
    domain.destroy()
    assert {image.parent for image in moved.values()} == {folder}
    assert guest.verdict(moved).clean
