"""Small closed files on their way: overlays and memory, compared and then named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmferry.errors import DestinationExists
from vmferry.hosts.records import Fold
from vmferry.migration.steps.copying import START_AGAIN, note_copies, prove_copies, writing
from vmferry.migration.steps.progress import copy_verified
from vmferry.migration.steps.step import Job, inode_of, part_of
from vmferry.model import Lost, Placed
from vmferry.transfer import Transfer


@dataclass(frozen=True, slots=True)
class ClosedFile:
    """A file that nobody writes to any more, and its name at the destination."""

    source: Path
    final: Path
    below: Placed | None = None
    """Of an overlay: what its copy lies on, and is folded into."""
    grows: bool = False
    """Some of it may have been copied while it was written: see `Transfer`."""

    @property
    def part(self) -> Path:
        """Temporary name of the copy, until it is whole and compared."""
        return part_of(self.final)

    def transfer(self, job: Job) -> Transfer:
        return replace(job.transfer(self.source, self.part), grows=self.grows)


def bring(job: Job, files: Sequence[ClosedFile], target: str, *, hurry: bool = False) -> int:
    """Copy the files that the destination lacks, all at once, and name them in this order. Returns the bytes moved.

    Raises DestinationExists where a file of somebody else's has the name of one.
    `target`: the disk whose progress it is. `hurry`: as of `copy_verified`.
    """
    missing = [file for file in files if not job.there.exists(file.final)]
    for file in files:
        if file not in missing and not _brought(job, file):
            raise DestinationExists(path=file.final)  # `cp` of the source's folder gives the overlay's name to a copy
    moved = copy_verified(job, [file.transfer(job) for file in missing], target, hurry=hurry)
    for file in files:
        if file in missing:
            if file.below is not None:
                job.there.rebase(file.part, file.below)
            job.facts.brought[file.final] = inode_of(job.there, file.part)
        job.there.promote(file.part, file.final)  # cut off between its two halves, both names are there
    return moved


def _brought(job: Job, file: ClosedFile) -> bool:
    """Tell whether what has the copy's name is the copy: the job noted its inode before it gave it that name."""
    inode = inode_of(job.there, file.final)
    return inode != "" and inode == job.facts.brought[file.final]


def fold(job: Job, overlays: Sequence[ClosedFile]) -> None:
    """Write what these overlays' copies hold into the images that they lie on, all at once, and remove the copies.

    Raises CopyReplaced, CopyWritten if somebody else has written to one of those images, or put another there.
    Nobody has those images open. Repeating it after it was cut off gives the same images: an overlay writes all that it
    holds anew, also what its guest discarded, which it holds as zeros.
    """
    prove_copies(job, START_AGAIN)
    writing(job)
    job.there.fold([Fold(overlay.final, overlay.below) for overlay in overlays if overlay.below is not None])
    note_copies(job)
    for overlay in overlays:
        drop(job, overlay)


def drop(job: Job, file: ClosedFile) -> None:
    """Remove a file's copy at the destination, whole or not; a file of the same name that is not the job's stays."""
    job.there.drop(job.closed(file.transfer(job)))
    if job.lost is Lost.DESTINATION or _brought(job, file):
        job.there.remove(file.final)


def forget(job: Job, file: ClosedFile) -> None:
    """Remove the bookmarks of a file's transfer."""
    job.there.forget(job.closed(file.transfer(job)))
