"""Requests, moves, findings and plans of migrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vmferry.model.files import SourceFileFate
from vmferry.model.notices import NOBODY, Receivers
from vmferry.model.vms import Placed, Power, Technology, Where


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """What a person asked for: `vmferry migrate-storage`."""

    vm: str
    connect: str
    path: Path | None = None
    disks: dict[str, Where] = field(default_factory=dict)
    """Disk target to folder or volume; overrides `path` for that disk."""
    via: str = "auto"
    max_pause_s: float = 2.0
    limit_bytes_s: int | None = None
    keep_source: bool = False
    remove_bases: bool = False
    """Base images go with the source too, where nobody else needs them."""
    overlays: Path | None = None
    """Folder of the overlays of disks that lie on volumes, while they move."""
    format: str | None = None
    """Of the images at the destination; None: as they are."""
    overwrite: bool = False
    """Volumes may hold something."""
    priority: str = "normal"
    to: str | None = None
    """The host to go to, `vmferry migrate`; None: its own."""
    networks: dict[str, str] = field(default_factory=dict)
    """A network or bridge here to the one that stands for it there."""
    notify: Receivers = NOBODY
    """Told of what becomes of it, besides those of the state folder."""
    iso: str = "copy"
    """What becomes of the discs in the drives of a VM that goes to another host: copy, same or eject."""


# -- what is planned


@dataclass(frozen=True, slots=True)
class ImageMove:
    """The move of one image."""

    source: Where
    destination: Where
    format: str
    virtual_bytes: int
    data_bytes: int
    backing: str | None = None
    """Backing file to be written into the destination's header; None: leave it as it is."""
    backing_format: str | None = None
    stays: bool = False
    """Copied, and left at the source as it is: Plan.sources says why."""
    to_format: str | None = None
    """Another format at the destination."""
    from_volume: bool = False
    to_volume: bool = False
    from_slice_bytes: int | None = None
    to_slice_bytes: int | None = None
    """The volume is larger: the guest's disk is only so much of it."""

    @property
    def bytewise(self) -> bool:
        """True if the image is copied as a file, byte for byte: snapshots inside it, bitmaps and layout survive."""
        return not (self.from_volume or self.to_volume or self.to_format)

    @property
    def from_(self) -> Placed:
        return Placed(self.source, self.format, self.from_slice_bytes)

    @property
    def to(self) -> Placed:
        return Placed(self.destination, self.to_format or self.format, self.to_slice_bytes)


@dataclass(frozen=True, slots=True)
class DiskMove:
    """The move of one disk, with its active image first in `images`."""

    target: str
    images: tuple[ImageMove, ...]
    overlays: Path
    """What the names of its overlays begin with: the image's own, or one in a folder for an image on a volume."""
    overlay_copies: Path
    """The same at the destination."""
    frozen: bool = True
    """Takes writes, so it needs overlays; a read-only disk does not."""

    @property
    def active(self) -> ImageMove:
        return self.images[0]

    @property
    def from_(self) -> Placed:
        return self.active.from_

    @property
    def to(self) -> Placed:
        return self.active.to


@dataclass(frozen=True, slots=True)
class FileMove:
    """A small file of the VM beside its disks: the NVRAM."""

    source: Path
    destination: Path
    stays: bool = False
    """It is left at the source: Plan.sources says why."""


class Priority(StrEnum):
    """Order of jobs; one of a higher priority takes the place of those below it, as in BITS."""

    FOREGROUND = "foreground"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """Rank of the priority; 0 goes first."""
        return list(Priority).index(self)


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


DEEPEST_CHAIN = 200
"""libvirt's own limit, seen on 9.0: a VM on 200 images starts, and takes no overlay."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A migration, frozen when it is submitted: what moves where, by which steps."""

    vm: str
    uuid: str
    connect: str
    technology: Technology
    steps: tuple[str, ...]
    disks: tuple[DiskMove, ...]
    """Those that take writes first: the VM's memory and small files go where the first one does."""
    files: tuple[FileMove, ...]
    power: Power
    persistent: bool
    memory_bytes: int
    keep_source: bool
    max_pause_s: float
    touched_bytes: int = 0
    precopy: bool = True
    agent: bool = False
    overwrite: bool = False
    sources: tuple[SourceFileFate, ...] = ()
    """What becomes of each file that is copied, those that lie on others first."""
    findings: tuple[Finding, ...] = ()
    ruled_out: tuple[Ruled, ...] = ()
    pause_forecast_s: float = 0.0
    pause_factor: float = 1.0
    """What earlier moves between these hosts have taught: forecasts of the pause are multiplied by it."""
    seconds_forecast: float = 0.0
    deepest: int = DEEPEST_CHAIN
    """The most images that a chain may have, overlays among them: the libvirts at work bear no more."""
    to: str | None = None
    """The host it goes to; None: it stays on its own."""
    networks: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, Placed | None] = field(default_factory=dict)
    """Drives whose disc is not copied: another image of that content there, or nothing."""
    checkpoints: tuple[str, ...] = ()
    """libvirt's checkpoints that cannot go along: a disk is copied by content, and its bitmaps stay behind."""

    @property
    def relocates(self) -> bool:
        return self.to is not None

    @property
    def images(self) -> tuple[ImageMove, ...]:
        """Every image to move, once, bases before what lies on them."""
        seen: dict[Where, ImageMove] = {}
        for disk in self.disks:
            for image in reversed(disk.images):
                seen.setdefault(image.source, image)
        return tuple(seen.values())

    @property
    def most_overlays(self) -> int:
        """The most overlays that each disk that is frozen may have on it at once."""
        return self.deepest - max((len(disk.images) for disk in self.disks if disk.frozen), default=0)

    @property
    def data_bytes(self) -> int:
        return sum(image.data_bytes for image in self.images)

    @property
    def blockers(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.BLOCKER)
