"""A VM's disks: what they lie on, new overlays, and mirrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.hosts.records import Quiesced
from vmferry.model import Placed, Volume, Where
from vmferry.model.chains import DiskChain
from vmferry.transfer import Watch


class Disks(Protocol):
    """A VM's disks: what they lie on, new overlays, and mirrors."""

    @query
    def active_image(self, uuid: str, target: str) -> Where:
        """Return the image that the disk runs on now or, when the VM is off, would start from; "/" if it has none."""

    @query
    def chains(self, uuid: str, memory: Path | None = None) -> Sequence[DiskChain] | None:
        """Return what the VM's disks lie on now, as libvirt and as QEMU see it; None for a VM that is off.

        With `memory`: what they lay on when the VM was put into this saved state. Does not wait for libvirt operations
        in flight.
        """

    @query
    def users(self, path: Where) -> tuple[str, ...]:
        """Return UUIDs of the VMs that name the image or have images on it, as they run or from their next start on."""

    @query
    def volume(self, where: Where) -> Volume | None:
        """Return the block device, LUN or export at this place; None for a path that is no block device."""

    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        """Switch all these disks (by target) to new overlays at one moment, leaving no snapshot metadata in libvirt.

        `quiesce_s`: ask the guest agent to freeze file systems, waiting for it at most so many seconds. Returns whether
        they were frozen.
        """

    def unfreeze(
        self,
        uuid: str,
        target: str,
        overlays: Sequence[Path],
        base: Placed,
        watch: Watch,
        memory: Path | None = None,
        *,
        unmerged: bool = False,
    ) -> Placed:
        """Take a job's overlays, the newest first, out of a disk's chain: each is merged into what lies below it.

        Images that somebody else has put on the overlays stay on top. The VM may run, be paused, off, saved by libvirt
        or gone, or its disk detached; with `memory` it is in this saved state of the job's own, which gets a new date.
        Of a VM that is off, and whose definition names no overlay, they were merged by an earlier call; not with
        `unmerged`: then they are merged now. The VM's definition is changed where it names the overlays. Returns what
        the disk lies on then; `base` is what lay below the overlays at first.

        A running guest may be paused for the instant of the switch, and stays paused if the caller is killed within.
        Removes no files. Raises StartedOnOverlay where a QEMU that was started on an overlay may not write the base;
        DiskHeld, SnapshotHeld, MemoryElsewhere and StillNamed where something that somebody made needs the overlays.
        """

    def mirror(self, uuid: str, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        """Start mirroring the active image's own data, and every further write, into an image that exists.

        `destination` holds what lies below the active image already. A mirror to it that runs gets the new limit, in
        bytes per second. Raises HostRefused while another mirror runs.
        """

    @query
    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        """Return (ready, done bytes, total bytes) of the disk's mirror. Raises HostRefused when there is none."""

    @query
    def mirroring(self, uuid: str, target: str) -> bool:
        """Does a mirror run on the disk?"""

    def pivot(self, uuid: str, target: str) -> None:
        """Make the destination of the disk's mirror its active image, which ends the mirror."""

    def end_mirror(self, uuid: str, target: str, destination: Placed) -> None:
        """Stop the disk's mirror to `destination`, if it runs; the disk stays where it was, another mirror goes on."""
