"""A guest that writes goes to another host with its disks, by vmferry and by libvirt alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tests.support.fleets import ManagedLab, managed

from vmferry.lab import BARE_GUEST, DiskSpec, GuestSpec, Lab, LabGuest, LabHost, StorageSpec

from .migrations import OURS, as_seen, need_kvm, on_ide, own_folder, two_disks
from .ours import moved
from .table import Against, Aim, Row, Sample, alone, alternate, breakdown
from .virsh import certify, migrate_with_storage

VIRSH = "virsh migrate"
ENCRYPTED = "the same --tls"
STORAGES = (StorageSpec("san1", "ext4", 4096, direct=True), StorageSpec("san2", "xfs", 4096, direct=True))
SYSTEM = (Path("/usr/lib"), Path("/usr/share"))
"""Programs and libraries, and what they read."""
Move = Callable[[LabGuest, Path], Sample]


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two hosts with agents, and a manager whose worker runs."""

    fleet: ManagedLab
    _numbers: Iterator[int]

    @property
    def there(self) -> LabHost:
        return self.fleet.lab.host("host2")

    def measure(self, spec: GuestSpec, move: Move) -> Sample:
        """One migration of one new guest from host1 to a folder of its own on host2."""
        named = replace(spec, name=f"{spec.name}-{next(self._numbers)}")
        guest = LabGuest.make(self.fleet.lab.host("host1"), named)
        folder = self.there.storage("san2") / named.name
        try:
            folder.mkdir()
            return as_seen(guest, lambda: self._arrived(guest, move(guest, folder)))
        finally:
            guest.remove()
            shutil.rmtree(folder, ignore_errors=True)

    def _arrived(self, guest: LabGuest, told: Sample) -> Sample:
        guest.moved_to(self.there)
        return told

    def ours(self, via: str) -> Move:
        def move(guest: LabGuest, folder: Path) -> Sample:
            words = ("--connect", "host1", "migrate", guest.name, "--to", "host2", "--path", folder, "--via", via)
            return moved(self.fleet.manager, (*words, "--priority", "foreground"))

        return move

    def virsh(self, guest: LabGuest, folder: Path) -> Sample:
        return migrate_with_storage(guest, self.there, folder)

    def virsh_encrypted(self, guest: LabGuest, folder: Path) -> Sample:
        return migrate_with_storage(guest, self.there, folder, tls=True)


@contextmanager
def hosts(link: str | None = None) -> Iterator[Hosts]:
    """`link`: the most that it carries, as tc writes it, which the agents are told; else as much as it can."""
    with (
        own_folder() as folder,
        Lab(folder).up(2, STORAGES, owner_pid=os.getpid()) as lab,
        managed(lab, "bench", options=("--link-speed", link) if link else ()) as fleet,
    ):
        for host in lab.hosts:
            lab.link(host.name).shape(link)
        certify(lab.hosts)
        fleet.manager.jobs()  # starts the worker
        yield Hosts(fleet, count(1))


def live(runs: int, data_mib: int) -> list[Row]:
    """Under KVM, while the guest writes 50 times a second to each of two disks and dirties its memory.

    All of it is noise, which nothing makes smaller.
    """
    return _live(f"live relocation, {data_mib / 1024:g} GiB", runs, two_disks(data_mib))


def live_over_a_gbit(runs: int, data_mib: int, *, noise: bool) -> list[Row]:
    """The same over a GBit/s: with what is in an operating system's files on its disks, or with noise there too."""
    filled = two_disks(data_mib)
    if not noise:
        filled = tuple(replace(disk, data_of=folder) for disk, folder in zip(filled, SYSTEM, strict=True))
    return _live(f"live, 1 GBit/s, {'noise' if noise else 'files'}", runs, filled, "1gbit")


def _live(case: str, runs: int, disks: tuple[DiskSpec, ...], link: str | None = None) -> list[Row]:
    need_kvm("relocation")
    spec = replace(BARE_GUEST, name="away", disks=on_ide(disks), memory_mib=256, touch_mib=192, dirty_mib_s=4, rate=50)
    with hosts(link) as at:
        seen = alternate(
            case,
            runs,
            {
                OURS: lambda: at.measure(spec, at.ours("live")),
                VIRSH: lambda: at.measure(spec, at.virsh),
                ENCRYPTED: lambda: at.measure(spec, at.virsh_encrypted),
            },
        )
    against, alike = Against(case, seen, OURS, VIRSH), Against(case, seen, OURS, ENCRYPTED)
    return [
        against.row("job, with comparison", "whole", "whole", Aim(0.8)),
        against.row("command, by wall clock", "command", "whole"),
        alike.row("job, with comparison", "whole", "whole"),
        against.row("pause, by guest's clock", "pause", "pause", Aim(1.0)),
        alike.row("pause, by guest's clock", "pause", "pause"),
        against.row("longest gap between acks", "stall", "stall"),
        *alone(case, seen[OURS], {"pause, by the receipt": "receipt pause", "pause, forecast": "forecast"}),
        *breakdown(f"{case}: time", seen[OURS], "whole", "step "),
        *alone(f"{case}: time", seen[OURS], {"between steps": "between"}),
    ]


def quick(runs: int, data_mib: int) -> list[Row]:
    """256 MiB of memory, most of it touched, by a saved state; under KVM."""
    need_kvm("relocation-quick")
    case = "quick relocation, 256 MiB memory"
    disks = on_ide(two_disks(data_mib))
    spec = replace(BARE_GUEST, name="saved", disks=disks, memory_mib=256, touch_mib=192, rate=50)
    with hosts() as at:
        seen = alternate(case, runs, {OURS: lambda: at.measure(spec, at.ours("quick"))})[OURS]
    measures = {"job": "whole", "pause, by the receipt": "receipt pause", "pause, forecast": "forecast"}
    return [
        *(replace(row, aim=Aim(2.0, "value")) for row in alone(case, seen, {"pause, by guest's clock": "pause"})),
        *alone(case, seen, measures),
        *breakdown(f"{case}: time", seen, "whole", "step "),
    ]
