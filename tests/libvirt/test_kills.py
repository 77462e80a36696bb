"""kill -9 of the worker at random moments, again and again: then `vmferry recover`, and the guest is the judge.

VMFERRY_KILLS is how often, for each technology: 30 in `make long`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.support.seen import TWO_DISKS, destination, images, nothing_of_ours, power_off

from vmferry.lab import GuestSpec, LabGuest, LabHost
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
KILLS = int(os.environ.get("VMFERRY_KILLS", "4"))
PARTS = 2
"""The kills of a technology are shared out, so that guests run side by side."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("via", ("live", "quick", "offline"))
def test_a_worker_killed_at_any_moment_loses_nothing(
    via: str, part: int, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec(f"survivor {via} {part}", disks=TWO_DISKS, rate=15))
    domain = domain_of(guest)
    if via == "offline":
        power_off(guest, domain)
    places = [guest.place.images["vda"].parent, destination(lab, guest)]
    luck = random.Random(f"{via} {part}")
    kills = 0
    longest = 6.0
    while kills < KILLS // PARTS:
        here = where(domain)
        there = next(p for p in places if p != here)
        begun = time.monotonic()
        job = ferry.detached(guest.name, "--path", there, "--via", via, "--max-pause", "60s")
        kills += killed_within(ferry, luck.uniform(0.0, longest))
        ended = ferry.run("recover")
        assert ended.code == 0, ended.out + ended.err
        state = ferry.state(job)
        longest = max(2.0, min(longest, time.monotonic() - begun))
        assert state in ("done", "undone"), ferry.job(job)
        assert where(domain) == (there if state == "done" else here)
        judge(guest, domain, places, via)


def where(domain: libvirt.virDomain) -> Path:
    """The one folder from which the VM runs, and would start."""
    folders: set[Path] = {p.parent for p in (*images(domain).values(), *images(domain, live=False).values())}
    assert len(folders) == 1, folders
    return folders.pop()


def killed_within(ferry: VmferryCommand, seconds: float) -> bool:
    """Kill the worker after so long. The moment is what is random here; nothing is waited for."""
    time.sleep(seconds)
    return ferry.kill_worker()


def judge(guest: LabGuest, domain: libvirt.virDomain, places: list[Path], via: str) -> None:
    nothing_of_ours(*places)
    assert sorted(p.name for place in places for p in place.iterdir()) == ["vda.qcow2", "vdb.img"]
    if via != "offline":
        assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        guest.wait_acks(5)
        guest.stop_writing()
    verdict = guest.verdict()
    assert verdict.clean, verdict
    if via != "offline":
        guest.go_on_writing()
