"""Guests for tests, and where their files are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmferry.lab import BARE_GUEST, DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.hosts.processes import lab_processes
from vmferry.lab.hosts.storage import mounts_below
from vmferry.lab.programs import run

BARE_LEASE = DiskSpec("hdc", storage="shared", format="raw", size_mib=1, bus="ide", lease=True)


MOVING = replace(
    BARE_GUEST,
    disks=(*(replace(disk, size_mib=64, data_mib=8, region_mib=8) for disk in BARE_GUEST.disks), BARE_LEASE),
    memory_mib=64,
    touch_mib=16,
    dirty_mib_s=4,
)


def folder_on(host: LabHost, guest: LabGuest, storage: str = "san2") -> Path:
    folder = host.storage(storage) / guest.name
    folder.mkdir(exist_ok=True)
    return folder


def assert_nothing_is_left(place: Path) -> None:
    assert lab_processes(place) == []
    assert mounts_below(place) == []
    assert str(place) not in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")
    assert not place.exists()


MakeGuest = Callable[[GuestSpec], LabGuest]


MakeGuestOn = Callable[[LabHost, GuestSpec], LabGuest]
