"""VMs, their disks and images, and storages, as a host sees them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class Power(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class Technology(StrEnum):
    """The ways of moving a VM's storage, or the VM with it."""

    LIVE = "live"
    QUICK = "quick"
    OFFLINE = "offline"
    LIVE_RELOCATION = "live relocation"
    QUICK_RELOCATION = "quick relocation"
    LAN = "lan"

    @property
    def console_name(self) -> str:
        return _TITLES[self]


SAME_HOST = (Technology.LIVE, Technology.QUICK, Technology.OFFLINE)
OTHER_HOST = (Technology.LIVE_RELOCATION, Technology.QUICK_RELOCATION, Technology.LAN)
"""Each highest first."""
MIRRORS = frozenset({Technology.LIVE, Technology.LIVE_RELOCATION})
"""QEMU brings the rest over while the guest runs."""
SAVES = frozenset({Technology.QUICK, Technology.QUICK_RELOCATION})
"""The rest, and the memory, are carried while the guest stands."""

_TITLES = {
    Technology.LIVE: "Live storage migration",
    Technology.QUICK: "Quick Storage Migration",
    Technology.OFFLINE: "Offline storage migration",
    Technology.LIVE_RELOCATION: "Live relocation",
    Technology.QUICK_RELOCATION: "Quick relocation",
    Technology.LAN: "Network (LAN) migration",
}


@dataclass(frozen=True, slots=True)
class Url:
    """A volume that QEMU reaches over the network: nbd://, nbd+unix://, iscsi://, nfs://, as qemu-img takes it."""

    url: str

    def __str__(self) -> str:
        return self.url


Where = Path | Url
"""Where an image lies: a file, a block device, or over the network."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a disk's chain."""

    path: Where
    format: str
    virtual_bytes: int
    data_bytes: int
    """Bytes allocated on the storage, as st_blocks tells; of a volume all that the guest sees."""
    backing: str | None = None
    """The backing file as the image's header has it: absolute, relative or None."""
    backing_format: str | None = None
    """Its format as the header has it; None when the header does not say."""
    data_file: str | None = None
    """A qcow2's external data file."""
    volume: bool = False
    """It lies on a device, LUN or export that exists by itself: not ours to make, rename or remove."""
    slice_bytes: int | None = None
    """The volume is larger: the guest's disk is only so much of it."""
    internal_snapshots: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk of a VM, with its active image first in `chain`."""

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
    """The UUID or usage of a secret that libvirt does not have."""
    cache: str = ""
    """Its cache mode, as libvirt names it; "" for QEMU's own."""
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
    checkpoints: tuple[str, ...] = ()
    agent: bool = False
    """The guest agent answers."""
    touched_bytes: int = 0
    """Memory that QEMU holds for it now: what a saved state has to carry."""
    precopy: bool = True
    """Its memory may be written while it runs; not under TCG (docs/decisions/0009)."""
    managed_save: bool = False
    """It is off, and libvirt keeps its memory for the next start."""
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
    real: Path | None = None
    """Its name without symbolic links, on that host; None when it is not there."""
    storage: str = ""
    """UUID of the declared storage that it lies in, the same on every host that has it; "" for none."""


@dataclass(frozen=True, slots=True)
class FolderUse:
    """What a move would put into a folder."""

    files: int = 1
    largest_bytes: int = 0
    longest_name_bytes: int = 0
    direct: bool = False
    """A disk there is written past the page cache."""
    raw_bytes: tuple[int, ...] = ()
    """Sizes of the raw disks that are."""


QCOW2_PART = 0.002
"""A qcow2's own tables, as a part of what it holds: 8 bytes of L2 and 2 of refcounts for each cluster of 64 KiB,
and as much again for what is rounded up."""
QCOW2_FLOOR_BYTES = 1 << 20


def volume_bytes(virtual_bytes: int, format_: str) -> int:
    """Return the least size in bytes of a volume for a disk of that size."""
    if format_ == "raw":
        return virtual_bytes
    return virtual_bytes + QCOW2_FLOOR_BYTES + round(virtual_bytes * QCOW2_PART)


@dataclass(frozen=True, slots=True)
class Volume:
    """A block device, LUN or export, as a host sees it now."""

    where: Where
    size_bytes: int = 0
    holds: str | None = None
    """What was found on it: a file system, a partition table, an image, or other data."""
    trouble: str | None = None
    """Why it cannot be used: it does not answer, or something else has it open."""
    cure: str = ""
    """What helps against that, where more is known than to mend it."""
    resizes: bool = False
    """It takes the size of what is copied there: a file on NFS."""

    def lacks(self, virtual_bytes: int, format_: str) -> int:
        """Return the bytes that a disk of that size needs there, if the volume has fewer and keeps its size; else 0."""
        needed = volume_bytes(virtual_bytes, format_)
        return needed if self.size_bytes < needed and not self.resizes else 0


class Placed(NamedTuple):
    """An image as a definition names it. Its format is never probed: a guest may write a header into a raw disk."""

    path: Where
    format: str
    slice_bytes: int | None = None
    """Only so many bytes of a raw volume that is larger: a guest's disk must not grow by being moved."""
