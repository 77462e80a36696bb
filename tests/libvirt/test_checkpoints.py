"""Checkpoints and their bitmaps: an incremental backup after a move holds all that was written since, or fails.

The full backup with the incremental one laid on it is the judge: every acknowledged write is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from tests.support.job_states import said, until_ended, until_step
from tests.support.seen import destination, power_off, run
from tests.support.volumes import LabVolumes

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
ONE = GuestSpec("kept", disks=(DiskSpec("vda", format="qcow2", size_mib=96, data_mib=8, region_mib=16),), rate=60)
QUICK = ("--via", "quick", "--max-pause", "60s")
LARGE = DiskSpec("vda", format="qcow2", size_mib=192, data_mib=8, region_mib=64)
WORDS = {"live": ("--via", "live"), "quick": QUICK}


def backup(domain: libvirt.virDomain, file: Path, checkpoint: str, since: str | None = None) -> Path:
    """A push backup of vda with a new checkpoint, to its end. Raises libvirt.libvirtError."""
    incremental = f"<incremental>{since}</incremental>" if since else ""
    disk = f"<disk name='vda' type='file'><driver type='qcow2'/><target file='{file}'/></disk>"
    domain.backupBegin(
        f"<domainbackup mode='push'>{incremental}<disks>{disk}</disks></domainbackup>",
        f"<domaincheckpoint><name>{checkpoint}</name></domaincheckpoint>",
    )
    wait_for(lambda: domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, "the backup to end", 60)
    done = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    assert done["success"], done
    return file


def laid_on(full: Path, incremental: Path) -> Path:
    """What a person restores from both."""
    run("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(full), str(incremental))
    return incremental


@pytest.mark.parametrize("via", WORDS)
def test_an_incremental_backup_after_a_move_holds_all_that_was_written_since_the_checkpoint(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(ONE)
    domain, backups = domain_of(guest), folder_of_backups(lab, via)
    full = backup(domain, backups / "full", "cp1")
    guest.wait_acks(100)
    ended = ferry.run("migrate-storage", guest.name, "--path", destination(lab, guest), *WORDS[via])
    assert ended.code == 0, ended.out + ended.err
    backups_hold_all(guest, domain, full)


@pytest.mark.parametrize("via", WORDS)
def test_what_is_folded_round_by_round_is_in_an_incremental_backup_too(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """The guest writes as fast as it is copied, so that there are rounds."""
    guest = make_guest(replace(ONE, disks=(LARGE,), rate=0))
    domain, backups = domain_of(guest), folder_of_backups(lab, f"{via} rounds")
    full = backup(domain, backups / "full", "cp1")
    guest.wait_acks(100)
    words = (guest.name, "--path", destination(lab, guest), "--via", via)
    least_s = json.loads(ferry.run("migrate-storage", *words, "--plan", "--json").out)["plan"]["pause_forecast_s"]
    job = ferry.detached(*words, "--limit", "2MiB", "--max-pause", f"{least_s * 1000 + 1:.0f}ms")
    wait_for(lambda: "Rounds" in ferry.steps(job), "rounds", 120)
    ferry.run("job", "limit", job, "none")
    wait_for(lambda: ferry.state(job) in ("paused", "done"), "more than one", 120)
    ferry.run("job", "limit", job, "none", "--max-pause", "10m")
    assert until_ended(ferry, job) == "done"
    assert ferry.receipt(job)["rounds"] > 0
    backups_hold_all(guest, domain, full)


@pytest.mark.parametrize("format_", ["qcow2", "raw"])
@pytest.mark.parametrize("via", WORDS)
def test_checkpoints_of_a_disk_that_is_copied_by_content_are_dropped_and_no_backup_is_based_on_them(
    via: str,
    format_: str,
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    volumes: LabVolumes,
    inner_ferry: VmferryCommand,
) -> None:
    """Seen: an incremental backup after the move succeeded and lacked 233 of 441 blocks."""
    guest = make_guest(ONE)
    domain, backups = domain_of(guest), folder_of_backups(lab, f"{via} {format_}")
    backup(domain, backups / "full", "cp1")
    guest.wait_acks(100)
    device = volumes.device(f"{via}-{format_}", 112)
    words = (guest.name, "--disk", f"vda={device}", "--format", format_, "--overlay-dir", destination(lab, guest))
    assert "the checkpoints of kept (cp1) are dropped" in said(inner_ferry.run("migrate-storage", *words, "--plan"))
    ended = inner_ferry.run("migrate-storage", *words, *WORDS[via])
    assert ended.code == 0, ended.out + ended.err
    assert inner_ferry.receipt(inner_ferry.jobs()[0]["id"])["checkpoints_dropped"] == ["cp1"]
    assert domain.listAllCheckpoints(0) == []
    with pytest.raises(libvirt.libvirtError, match=r"cp1|storage type raw"):
        backup(domain, backups / "broken", "cp2", since="cp1")
    guest.wait_acks(50)
    if format_ == "qcow2":  # the name is free again; and so it is on the way back to a file
        backup(domain, backups / "on the device", "cp1")
        back = ("--disk", f"vda={destination(lab, guest)}", "--format", "qcow2")
        ended = inner_ferry.run("migrate-storage", guest.name, *back, *WORDS[via])
        assert ended.code == 0, ended.out + ended.err
        assert domain.listAllCheckpoints(0) == []
        with pytest.raises(libvirt.libvirtError, match="cp1"):
            backup(domain, backups / "broken too", "cp2", since="cp1")
        backups_hold_all(guest, domain, backup(domain, backups / "again", "cp1"))
        return
    power_off(guest, domain)
    assert guest.verdict({"vda": volumes.backing[device]}).clean


def test_checkpoints_are_as_good_as_before_when_a_mirror_is_undone(
    lab: LabHost,
    make_guest: MakeGuest,
    domain_of: DomainOf,
    volumes: LabVolumes,
    inner_ferry: VmferryCommand,
) -> None:
    guest = make_guest(replace(ONE, rate=0))
    domain, backups = domain_of(guest), folder_of_backups(lab, "undone")
    full = backup(domain, backups / "full", "cp1")
    device = volumes.device("undone", 112)
    job = inner_ferry.detached(guest.name, "--disk", f"vda={device}", "--format", "qcow2", "--limit", "4MiB")
    until_step(inner_ferry, job, "Mirror")
    wait_for(lambda: domain.listAllCheckpoints(0) == [], "no backup to be based on the checkpoint", 30)
    inner_ferry.run("job", "cancel", job)
    assert until_ended(inner_ferry, job) == "undone"
    assert [checkpoint.getName() for checkpoint in domain.listAllCheckpoints(0)] == ["cp1"]
    backups_hold_all(guest, domain, full)


def folder_of_backups(lab: LabHost, name: str) -> Path:
    folder = lab.storage("san1") / f"backups {name}"
    folder.mkdir()
    return folder


def backups_hold_all(guest: LabGuest, domain: libvirt.virDomain, full: Path) -> None:
    """Two incremental backups more, each laid on the one before, and the disk itself."""
    guest.wait_acks(100)
    guest.stop_writing()
    second = laid_on(full, backup(domain, full.with_name("second"), "cp2", since="cp1"))
    assert guest.verdict({"vda": second}).clean, guest.verdict({"vda": second})
    guest.go_on_writing()
    guest.wait_acks(50)
    guest.stop_writing()
    third = laid_on(second, backup(domain, full.with_name("third"), "cp3", since="cp2"))
    assert guest.verdict({"vda": third}).clean, guest.verdict({"vda": third})
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
