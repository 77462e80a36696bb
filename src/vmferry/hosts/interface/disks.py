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
        """What the disk runs on now; when the VM is off, what it would start from."""

    @query
    def chains(self, uuid: str, memory: Path | None = None) -> Sequence[DiskChain] | None:
        """What its disks lie on now, in libvirt's eyes and in QEMU's; None of one that is off.

        `memory`: what it lay on when it was put into this saved state. Waits for nothing that is in flight.
        """

    @query
    def users(self, path: Where) -> tuple[str, ...]:
        """UUIDs of the VMs that name it, or whose images lie on it, as they run or from their next start on."""

    @query
    def volume(self, where: Where) -> Volume | None:
        """The device, LUN or export there; None for a path that is no block device."""

    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        """Send writes of all these disks to new overlays, at one moment, leaving no metadata.

        `quiesce_s`: ask the guest agent to freeze file systems, waiting for it at most so long.
        """

    def unfreeze(
        self,
        uuid: str,
        target: str,
        overlays: Sequence[Path],
        base: Placed,
        watch: Watch,
        memory: Path | None = None,
    ) -> Placed:
        """Take a job's overlays, the newest first, out of a disk's chain: each is merged into what lies below it.

        Whatever somebody else has put on them stays on top. VM running, paused, off, saved by libvirt, gone, or its
        disk detached; or in this saved state of the job's own, which is dated anew. Its definition follows where it
        names them. Returns what the disk lies on then; `base` is what lay below them at first.

        A guest that runs may stand for the instant of the switch: who is cut off within leaves it standing.
        Removes no files. Raises StartedOnOverlay where a QEMU that was started on an overlay may not write the base;
        DiskHeld, SnapshotHeld, MemoryElsewhere and StillNamed where what somebody made needs them.
        """

    def mirror(self, uuid: str, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        """Start copying the active image's own data, and every further write, into an image that exists.

        That one holds what lies below the active image. A mirror that runs already gets this limit.
        """

    @query
    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        """(ready, done bytes, total bytes) of a mirror. Raises HostRefused when there is none."""

    @query
    def mirroring(self, uuid: str, target: str) -> bool:
        """Does a mirror run on the disk?"""

    def pivot(self, uuid: str, target: str) -> None:
        """Make the mirror's destination the active image."""

    def end_mirror(self, uuid: str, target: str, destination: Placed) -> None:
        """Stop the mirror to there; the disk stays where it was. None running is fine, another one runs on."""
