"""The records that all parts share. Nothing here touches the world.

Bytes are integers in bytes, times are seconds, paths are absolute and mean a file on the record's host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Power(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class Technology(StrEnum):
    """The ways of moving storage on one host, highest first."""

    LIVE = "live"
    QUICK = "quick"
    OFFLINE = "offline"

    @property
    def console_name(self) -> str:
        return _TITLES[self]


_TITLES = {
    Technology.LIVE: "Live storage migration",
    Technology.QUICK: "Quick Storage Migration",
    Technology.OFFLINE: "Offline storage migration",
}


# -- what is


@dataclass(frozen=True, slots=True)
class Image:
    """One file of a disk's chain."""

    path: Path
    format: str
    virtual_bytes: int
    data_bytes: int
    """Bytes allocated on the storage, as st_blocks tells."""
    backing: str | None = None
    """The backing file as the image's header has it: absolute, relative or None."""
    backing_format: str | None = None
    """Its format as the header has it; None when the header does not say."""
    data_file: str | None = None
    """A qcow2's external data file."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One virtual disk of a VM, its active image first in `chain`."""

    target: str
    chain: tuple[Image, ...]
    device: str = "disk"
    """disk, cdrom, floppy or lun"""
    source: str = "file"
    """file, block, network, volume, vhostuser, ... as libvirt's disk type; "none" for an empty drive"""
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False
    secret_missing: str | None = None
    block_job: str | None = None
    """The kind of block job that runs on it, if one does."""

    @property
    def active(self) -> Image:
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class Vm:
    name: str
    uuid: str
    power: Power
    persistent: bool
    memory_bytes: int
    disks: tuple[Disk, ...]
    nvram: Path | None = None
    tpm: Path | None = None
    """The folder of an emulated TPM's state."""
    snapshots: tuple[str, ...] = ()
    agent: bool = False
    """The guest agent answers."""
    touched_bytes: int = 0
    """Memory that QEMU holds for it now: what a saved state has to carry."""
    precopy: bool = True
    """Its memory may be written while it runs; not under TCG (docs/decisions/0009)."""
    no_save: str | None = None
    """Why its memory cannot be saved (a passed-through device, for one); None when it can."""

    def disk(self, target: str) -> Disk:
        return next(d for d in self.disks if d.target == target)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a storage, as a host sees it now."""

    path: Path
    exists: bool
    writable: bool
    free_bytes: int
    filesystem: str
    """Names the file system: equal for two folders on the same one."""
    reflink: bool = False
    direct: bool = True
    """O_DIRECT works there."""


class Placed(NamedTuple):
    """An image as a definition names it. Its format is never probed: a guest may write a header into a raw disk."""

    path: Path
    format: str


# -- what is wanted


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """What a person asked for: `vmferry migrate-storage`."""

    vm: str
    connect: str
    path: Path | None = None
    disks: dict[str, Path] = field(default_factory=dict)
    """Disk target to folder; overrides `path` for that disk."""
    via: str = "auto"
    max_pause_s: float = 2.0
    limit_bytes_s: int | None = None
    keep_source: bool = False


# -- what is planned


@dataclass(frozen=True, slots=True)
class ImageMove:
    """One image on its way; `shared` ones are used by another VM too and stay at the source."""

    source: Path
    destination: Path
    format: str
    virtual_bytes: int
    data_bytes: int
    backing: str | None = None
    """Backing file to be written into the destination's header; None: leave it as it is."""
    backing_format: str | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class DiskMove:
    """One disk on its way, its active image first in `images`."""

    target: str
    images: tuple[ImageMove, ...]
    frozen: bool = True
    """Takes writes, so it needs overlays; a read-only disk does not."""

    @property
    def active(self) -> ImageMove:
        return self.images[0]

    @property
    def from_(self) -> Placed:
        return Placed(self.active.source, self.active.format)

    @property
    def to(self) -> Placed:
        return Placed(self.active.destination, self.active.format)


@dataclass(frozen=True, slots=True)
class FileMove:
    """A small file of the VM beside its disks: the NVRAM."""

    source: Path
    destination: Path


class Severity(StrEnum):
    BLOCKER = "blocker"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that preflight found, with what would cure it."""

    severity: Severity
    what: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Ruled:
    """Why a technology is not possible for this job."""

    technology: Technology
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A migration, frozen when it is submitted: what moves where, by which steps."""

    vm: str
    uuid: str
    connect: str
    technology: Technology
    steps: tuple[str, ...]
    disks: tuple[DiskMove, ...]
    files: tuple[FileMove, ...]
    power: Power
    persistent: bool
    memory_bytes: int
    keep_source: bool
    max_pause_s: float
    touched_bytes: int = 0
    precopy: bool = True
    agent: bool = False
    findings: tuple[Finding, ...] = ()
    ruled_out: tuple[Ruled, ...] = ()
    pause_forecast_s: float = 0.0
    seconds_forecast: float = 0.0

    @property
    def images(self) -> tuple[ImageMove, ...]:
        """Every image to move, once, bases before what lies on them."""
        seen: dict[Path, ImageMove] = {}
        for disk in self.disks:
            for image in reversed(disk.images):
                seen.setdefault(image.source, image)
        return tuple(seen.values())

    @property
    def data_bytes(self) -> int:
        return sum(image.data_bytes for image in self.images)

    @property
    def blockers(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.BLOCKER)


# -- what happens


class JobState(StrEnum):
    QUEUED = "queued"
    """Submitted; waits for its slots."""
    RUNNING = "running"
    PAUSED = "paused"
    """Waits for a person, with the VM untouched: the guest writes faster than the rounds can follow."""
    UNDOING = "undoing"
    DONE = "done"
    UNDONE = "undone"
    FAILED = "failed"
    """Ended before it began; nothing was touched."""
    STUCK = "stuck"
    """Needs an operator; `job.sentence` says what to do."""


ACTIVE = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.PAUSED, JobState.UNDOING, JobState.STUCK})
FINAL = frozenset({JobState.DONE, JobState.UNDONE, JobState.FAILED})

ALLOWED: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (JobState.QUEUED, JobState.RUNNING),
        (JobState.QUEUED, JobState.FAILED),  # cancelled, or no longer possible, before its turn came
        (JobState.RUNNING, JobState.PAUSED),
        (JobState.PAUSED, JobState.RUNNING),
        (JobState.RUNNING, JobState.UNDOING),
        (JobState.PAUSED, JobState.UNDOING),
        (JobState.RUNNING, JobState.DONE),
        (JobState.UNDOING, JobState.UNDONE),
        (JobState.RUNNING, JobState.STUCK),  # only after the point of no return
        (JobState.UNDOING, JobState.STUCK),
        (JobState.STUCK, JobState.RUNNING),  # `job retry`
        (JobState.STUCK, JobState.UNDOING),
    }
)
"""All changes of a job's state that exist; every other one is a bug and is refused."""


@dataclass(frozen=True, slots=True)
class Token:
    """Who acts: a host refuses a job's epoch lower than the highest it has seen."""

    job: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DiskProgress:
    target: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a watching person sees; bytes written, not bytes asked for."""

    now: str = ""
    next: str = ""
    step: int = 0
    steps: int = 0
    disks: tuple[DiskProgress, ...] = ()
    rate_bytes_s: float = 0.0
    seconds_left: float | None = None
    pause_forecast_s: float | None = None


# -- what is left


@dataclass(frozen=True, slots=True)
class DiskReceipt:
    target: str
    from_: Path
    to: Path
    format: str
    virtual_bytes: int
    copied_bytes: int
    root_hash: str


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    seconds: float
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    job: str
    vm: str
    technology: str
    disks: tuple[DiskReceipt, ...]
    phases: tuple[Phase, ...]
    pause_forecast_s: float
    pause_s: float
    verified: bool
    rounds: int
    finished: str = ""
    """ISO 8601, UTC"""
    kept: tuple[Path, ...] = ()
    """Source files kept, renamed, by --keep-source."""
    quiesced: str = ""
    """Were the guest's file systems frozen at the freeze: yes, no, unsure (they may be still); "" without an agent."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of a job's journal."""

    act: str
    """do or undo"""
    number: int
    step: str
    says: str
    begun: str
    ended: str | None = None
    ok: bool | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as the API shows it."""

    id: str
    state: JobState
    plan: Plan
    created: str
    sentence: str = ""
    """Why it is undone, stuck or waiting; empty when all is well."""
    kind: str = ""
    """The class of the error that ended it: Cancelled, DestinationFull, ..."""
    limit_bytes_s: int | None = None
    max_pause_s: float = 2.0
    cancel_asked: bool = False
    ended: str | None = None
    progress: Progress = Progress()
    journal: tuple[StepRecord, ...] = ()
