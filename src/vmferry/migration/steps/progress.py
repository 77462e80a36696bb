"""Passes a transfer's progress on to the job's control, disk by disk, and its commands to the transfer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vmferry.errors import ChainChanged, GuestGone, NoSuchVm, SourceFilling, SourceFull
from vmferry.migration.steps.chains import heed
from vmferry.migration.steps.step import Job
from vmferry.model import DiskProgress, Phase, Power
from vmferry.transfer import Throttle, Transfer

ROOM_POLL_S = 1.0
"""Between two looks at the room that is left at the source, where the guest's overlay grows."""
SOURCE_FLOOR_BYTES = 64 << 20
"""The guest must never meet a full source storage because of its overlay: below this the job gives up."""


class ControlWatch:
    """Receives a transfer's progress for one disk, and passes the job's limits and commands to the transfer.

    `before_bytes` of the disk's `total_bytes` are done already. `hurry`: no limit holds, and the room at the source is
    not watched.
    """

    def __init__(
        self, job: Job, target: str, before_bytes: int = 0, total_bytes: int = 0, *, hurry: bool = False
    ) -> None:
        self._job = job
        self._target = target
        self._before = before_bytes
        self._total = total_bytes
        self._looked = time.monotonic()
        self._own = Throttle(None) if hurry else None

    @property
    def throttle(self) -> Throttle:
        return self._own or self._job.control.throttle

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        total = max(self._total, self._before + total_bytes)
        self._job.control.disk(DiskProgress(self._target, self._before + done_bytes, total), rate_bytes_s)

    def check(self) -> None:
        self._job.control.check()
        if self._own is None and time.monotonic() - self._looked >= ROOM_POLL_S:
            self._looked = time.monotonic()
            spare_source(self._job)


def spare_source(job: Job) -> None:
    """Raise SourceFilling when the source's room gets low, while the overlays can still be merged back.

    Nothing is watched before the freeze, or once the VM is gone. Raises ChainChanged for a disk on no overlay of the
    job's.
    """
    if not job.facts.frozen:
        return
    for disk in job.frozen_disks:
        folder = job.host.folder(disk.overlays.parent)
        try:
            round_ = job.round_of(disk)
        except NoSuchVm:
            return
        if round_ is None:
            heed(job)
            if not job.plan.relocates and job.host.power(job.uuid) is Power.OFF:
                raise GuestGone(vm=job.plan.vm)  # and its definition was put back to what it was before
            return  # it has just left for the other host: nothing grows here any more
        if not folder.exists:
            raise ChainChanged(vm=job.plan.vm, change=f"{folder.path}, where disk {disk.target} lies, is gone")
        grown = job.host.allocated(job.overlay(disk, round_))
        if folder.free_bytes < SOURCE_FLOOR_BYTES + grown:
            paused = job.plan.power is Power.RUNNING and job.host.power(job.uuid) is Power.PAUSED
            error = SourceFull if paused else SourceFilling
            raise error(path=folder.path, free=folder.free_bytes >> 20, vm=job.plan.vm)


@contextmanager
def phase(job: Job, name: str) -> Iterator[list[int]]:
    """Time a phase for the receipt; the sum of what is appended to the yielded list is its bytes."""
    moved: list[int] = []
    begun = time.monotonic()
    yield moved
    job.control.phase(Phase(name, round(time.monotonic() - begun, 3), sum(moved)))


def copy_verified(job: Job, files: Sequence[Transfer], target: str, *, hurry: bool = False) -> int:
    """Copy small closed files to temporary names and compare them, all at once. Returns the bytes moved.

    `hurry`: the guest stands still meanwhile, so no limit holds, and nothing grows at the source.
    """
    if not files:
        return 0
    copied = job.there.bring(job.all_opened(files), ControlWatch(job, target, hurry=hurry))
    for file, each in zip(files, copied, strict=True):
        job.facts.copied[file.source] = each.copied_bytes + each.reused_bytes
    return sum(each.copied_bytes for each in copied)
