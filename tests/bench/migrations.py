"""Whole migrations of a guest that writes, each run with a guest of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from vmferry.errors import LabNeeds
from vmferry.lab import BARE_GUEST, DiskSpec, GuestSpec, LabGuest, LabHost, StorageSpec, wait_for
from vmferry.lab.guests.bare import bare_boot
from vmferry.lab.guests.console import longest_jump_s
from vmferry.lab.vmferry_command import VmferryCommand

from .ours import PAUSED_STEPS, migrate
from .table import Against, Aim, Row, Sample, alone, alternate, breakdown, values
from .transfer import make_cold
from .virsh import blockcopy, save_copy_restore

OURS = "vmferry"
BLOCKCOPY = "virsh blockcopy"
SAVE_COPY_RESTORE = "save, cp, restore"
STORAGES = (
    StorageSpec("san1", "ext4", 8192, direct=True),
    StorageSpec("san2", "xfs", 8192, direct=True),
    StorageSpec("reflink", "xfs", 8192, direct=True),
)
UNDISTURBED = "no move"
SETTLED_ACKS = 20
UNDISTURBED_ACKS = 2000
TOUCH_S = 300

Move = Callable[[LabGuest, Path], Sample]


@dataclass(frozen=True, slots=True)
class Bench:
    """A lab, vmferry's command with a worker that runs, and how much to measure."""

    lab: LabHost
    ferry: VmferryCommand
    runs: int
    _numbers: Iterator[int]

    def measure(self, spec: GuestSpec, move: Move, to: str) -> Sample:
        """One migration of one new guest to a folder of its own: as `move` tells it, and as the guest saw it."""
        guest = LabGuest.make(self.lab, spec)
        folder = self.lab.storage(to) / f"{spec.name} {next(self._numbers)}"
        try:
            folder.mkdir()
            return as_seen(guest, lambda: move(guest, folder))
        finally:
            guest.remove()
            shutil.rmtree(folder, ignore_errors=True)


def as_seen(guest: LabGuest, move: Callable[[], Sample]) -> Sample:
    """One migration, as `move` tells it and as the guest saw it."""
    _settle(guest)
    edges = len(guest.console.read().runs[-1])
    acks = len(guest.acks())
    told = move()
    took = [ack.took_us / 1e6 for ack in guest.acks()[acks:]]
    guest.wait_acks(SETTLED_ACKS)
    guest.wait_edges(3)
    if complaints := guest.errors():
        raise AssertionError(f"the guest complains: {complaints[0]}")
    seen = guest.console.runs[-1][max(0, edges - 2) :]
    return {**told, **_latency(took), "pause": longest_jump_s(seen), "stall": guest.stall()}


@contextmanager
def bench(folder: Path, runs: int) -> Iterator[Bench]:
    """A lab that fills this folder, which must be empty; its guard removes it even if this process is killed."""
    host = LabHost(folder)
    try:
        host.up(STORAGES, owner_pid=os.getpid())
        with VmferryCommand(host.at / "state", host.uri) as ferry:
            ferry.jobs()  # starts the worker
            yield Bench(host, ferry, runs, count())
    finally:
        host.down()


@contextmanager
def own_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vmferry-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def live(at: Bench, data_mib: int) -> list[Row]:
    """Two disks, from ext4 to xfs, while the guest writes 50 times a second to each."""
    case = f"live, {data_mib / 1024:g} GiB"
    spec = GuestSpec("live", disks=two_disks(data_mib), rate=50)
    seen = alternate(
        case,
        at.runs,
        {
            OURS: lambda: at.measure(spec, lambda guest, to: migrate(at.ferry, guest, to, "live"), "san2"),
            BLOCKCOPY: lambda: at.measure(spec, lambda guest, to: blockcopy(at.lab, guest, to), "san2"),
        },
    )
    against = Against(case, seen, OURS, BLOCKCOPY)
    return [
        against.row("job, with comparison", "whole", "whole", Aim(1.0)),
        against.row("command, by wall clock", "command", "whole"),
        against.row("pause, by guest's clock", "pause", "pause"),
        against.row("longest gap between acks", "stall", "stall"),
        *breakdown(f"{case}: time", seen[OURS], "whole", "step "),
        *alone(f"{case}: time", seen[OURS], {"between steps": "between", "pause": "receipt pause"}),
    ]


def quick(at: Bench, data_mib: int, touched_mib: int) -> list[Row]:
    """A saved state against a saved state, at so much touched memory."""
    return _quick(at, GuestSpec("quick", disks=two_disks(data_mib)), f"quick, {touched_mib} MiB touched", touched_mib)


def quick_kvm(at: Bench, data_mib: int, touched_mib: int) -> list[Row]:
    """The same under KVM, where memory is written while the guest runs; a guest that any KVM can run."""
    need_kvm("quick-kvm")
    return _quick(
        at,
        replace(BARE_GUEST, disks=on_ide(two_disks(data_mib))),
        f"quick, KVM, {touched_mib} MiB touched",
        touched_mib,
    )


def need_kvm(case: str) -> None:
    """Raises LabNeeds."""
    if bare_boot().accelerator != "kvm":
        raise LabNeeds(missing="a KVM that works", cure=f"run the bench without {case}")


def _quick(at: Bench, kind: GuestSpec, case: str, touched_mib: int) -> list[Row]:
    spec = replace(kind, memory_mib=max(256, touched_mib * 128 // 100), touch_mib=touched_mib, rate=50)
    seen = alternate(
        case,
        at.runs,
        {
            OURS: lambda: at.measure(spec, lambda guest, to: migrate(at.ferry, guest, to, "quick"), "san2"),
            SAVE_COPY_RESTORE: lambda: at.measure(spec, lambda guest, to: save_copy_restore(at.lab, guest, to), "san2"),
        },
    )
    against = Against(case, seen, OURS, SAVE_COPY_RESTORE)
    pauses = {"Save, from stop": "pause Save"} | {name: f"pause {name}" for name in PAUSED_STEPS}
    return [
        against.row("pause, by guest's clock", "pause", "pause", Aim(1 / 3)),
        against.row("job", "whole", "whole"),
        *alone(case, seen[OURS], {"pause, by the receipt": "receipt pause", "pause, forecast": "forecast"}),
        *alone(f"{case}: the pause", seen[OURS], {**pauses, "between steps": "pause between"}),
        *breakdown(f"{case}: time", seen[OURS], "whole", "step "),
    ]


def latency(at: Bench, data_mib: int) -> list[Row]:
    """What a guest that writes 100 times a second feels of its disk's move, and of none."""
    case = f"guest's latency, {data_mib / 1024:g} GiB"
    spec = GuestSpec("latency", disks=(DiskSpec("vda", format="raw", size_mib=data_mib + 256, data_mib=data_mib),))
    spec = replace(spec, rate=100)
    seen = alternate(
        case,
        at.runs,
        {
            OURS: lambda: at.measure(spec, lambda guest, to: migrate(at.ferry, guest, to, "live", "low"), "san2"),
            BLOCKCOPY: lambda: at.measure(spec, lambda guest, to: blockcopy(at.lab, guest, to), "san2"),
            UNDISTURBED: lambda: at.measure(spec, _leave_alone, "san2"),
        },
    )
    against, beside = Against(case, seen, OURS, BLOCKCOPY), Against(case, seen, OURS, UNDISTURBED)
    return [
        against.row("p99 of a write, by guest's clock", "p99", "p99", Aim(0.5)),
        beside.row("p99 of a write, by guest's clock", "p99", "p99"),
        against.row("p50 of a write", "p50", "p50"),
        beside.row("p50 of a write", "p50", "p50"),
        against.row("job, with comparison", "whole", "whole"),
    ]


def _leave_alone(guest: LabGuest, _: Path) -> Sample:
    guest.wait_acks(UNDISTURBED_ACKS, TOUCH_S)
    return {}


def _latency(took_s: list[float]) -> Sample:
    """Of the writes that ended meanwhile; nothing of a guest that does not tell."""
    if not any(took_s):
        return {}
    ordered = sorted(took_s)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[len(ordered) * 99 // 100]}


def reflink(at: Bench, virtual_gib: int, data_mib: int) -> list[Row]:
    """A guest's disk, large and nearly empty, to another folder of its own storage."""
    case = f"reflink, {virtual_gib} GiB disk"
    disk = DiskSpec("vda", storage="reflink", format="raw", size_mib=virtual_gib * 1024, data_mib=data_mib)
    spec = GuestSpec("reflink", disks=(disk,), rate=50)
    seen = alternate(
        case,
        at.runs,
        {OURS: lambda: at.measure(spec, lambda guest, to: migrate(at.ferry, guest, to, "live"), "reflink")},
    )
    whole = Row(case, "job", values(seen[OURS], "whole"), aim=Aim(3.0, "value"))
    return [
        whole,
        *alone(case, seen[OURS], {"command, by wall clock": "command", "pause, by guest's clock": "pause"}),
        *breakdown(f"{case}: time", seen[OURS], "whole", "step "),
    ]


def two_disks(data_mib: int) -> tuple[DiskSpec, ...]:
    half = data_mib // 2
    return (
        DiskSpec("vda", format="qcow2", size_mib=half + 256, data_mib=half),
        DiskSpec("vdb", format="raw", size_mib=half + 256, data_mib=half),
    )


def on_ide(disks: tuple[DiskSpec, ...]) -> tuple[DiskSpec, ...]:
    """The same for a guest that knows no other disks."""
    return tuple(replace(disk, target=f"hd{disk.target[-1]}", bus="ide") for disk in disks)


def _settle(guest: LabGuest) -> None:
    """Memory touched, writes going on, nothing of its making left to be written, no image in the page cache."""
    if guest.spec.touch_mib:
        wait_for(lambda: b"\ntouched " in guest.place.console.read_bytes(), "its memory to be touched", TOUCH_S)
    guest.wait_acks(SETTLED_ACKS)
    guest.wait_edges(2)
    os.sync()
    make_cold(*guest.place.images.values())
