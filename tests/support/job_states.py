"""How far the job of a real guest is, and waiting for it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import libvirt
from tests.support.seen import images, nothing_of_ours

from vmferry.errors import LabLate
from vmferry.lab import LabGuest, wait_for
from vmferry.lab.vmferry_command import ENDS, Ended, VmferryCommand

SLOW = ("--limit", "8MiB")


def at_source(guest: LabGuest, domain: libvirt.virDomain, folder: Path) -> None:
    """The job was undone: the VM runs where it was and nothing is left anywhere."""
    assert images(domain) == guest.place.images
    assert images(domain, live=False) == guest.place.images
    source = guest.place.images["vda"].parent
    assert sorted(source.iterdir()) == sorted(guest.place.images.values())
    assert [p for p in folder.iterdir() if p.is_file()] == []
    nothing_of_ours(source, folder)


def until_step(ferry: VmferryCommand, job: str, step: str) -> None:
    wait_for(lambda: ferry.step(job) == step, f"job {job} to reach {step}", 120)


def until_ended(ferry: VmferryCommand, job: str) -> str:
    try:
        wait_for(lambda: ferry.state(job) in ENDS, f"job {job} to end", 180)
    except LabLate as late:
        raise AssertionError(f"{late}: {ferry.job(job)['progress']}") from late
    return ferry.state(job)


def step_s(ferry: VmferryCommand, job: str, step: str) -> float:
    """How long the job's step took, by its journal."""
    record = next(r for r in ferry.job(job)["journal"] if r["step"] == step)
    return (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["begun"])).total_seconds()


def said(ended: Ended) -> str:
    """What a command said, whatever the width of the screen."""
    return " ".join((ended.out + ended.err).split())
