"""Live cut-over: a shallow mirror of the small overlay into the copy, then all disks pivot while the guest stands."""

from __future__ import annotations

import time
from collections.abc import Iterable

from vmferry.errors import GuestGone, HostRefused, MirrorEnded, VmHeld
from vmferry.migration.steps import checkpoints
from vmferry.migration.steps.chains import on_copy, prove, sources
from vmferry.migration.steps.closed_files import bring, drop, fold
from vmferry.migration.steps.copying import START_AGAIN, prove_copies, writing
from vmferry.migration.steps.progress import phase, spare_source
from vmferry.migration.steps.rounds import closed_overlay
from vmferry.migration.steps.saved_state import final_images
from vmferry.migration.steps.source_files import prove_files
from vmferry.migration.steps.step import Job, Step, power_of, rounds
from vmferry.model import DiskMove, DiskProgress, Power

MIRROR_POLL_S = 0.1
"""Between two looks at how far the mirrors are."""
SMALL_REST_POLL_S = 0.02
SMALL_REST_LOOKS = 50
"""A small rest is mirrored within a second: 0.1 s between looks would be a third of the step."""
CATCH_UP_LOOKS = 50
CALENDAR_POLL_S = 1.0
"""Between two looks whether the calendar lets bytes move again."""
SLOW_LOOKS = 600
LITTLE_BYTES = 4 << 20
"""Written in a few milliseconds."""


def over(job: Job, disk: DiskMove) -> bool:
    """Tell whether the disk runs from the destination."""
    return on_copy(job, job.host, disk) is True


def _pending(job: Job) -> list[DiskMove]:
    """Return the disks that still run from the source."""
    return [disk for disk in job.frozen_disks if not over(job, disk)]


def _any_over(job: Job) -> bool:
    return any(over(job, disk) for disk in job.frozen_disks)


class Mirror(Step):
    """Copy the rest of each disk into its copy and send every further write to both sides.

    A mirror that was cut off has left a part of the overlay in the copy. That does no harm, whatever the guest has done
    since: what an overlay has once taken it never gives up (a discarded cluster is kept as one of zeros), and the next
    mirror, or a fold of the closed overlay, writes all that it holds anew.
    """

    says = "mirroring the rest"

    def do(self, job: Job) -> None:
        _wait_until_open(job)
        prove(job, rounds(job), mirrored=True)
        if not self.overtaken(job):  # else there is no way back
            prove_copies(job, START_AGAIN)
            checkpoints.prove_none_taken(job)
        checkpoints.forget(job)
        writing(job)
        job.facts.mirroring = True
        with phase(job, "mirror") as moved:
            arm(job, _pending(job))
            moved.extend(job.host.mirrored(job.uuid, d.target)[1] for d in _pending(job))

    def overtaken(self, job: Job) -> bool:
        """Somebody has pivoted one of the mirrors by hand: that disk's newest writes are in the copy alone.

        A VM that was put on a copy before there was a mirror has not all that it wrote there: that is no way forward.
        """
        return job.facts.mirroring and _any_over(job)

    def undo(self, job: Job) -> None:
        for disk in job.frozen_disks:
            job.host.end_mirror(job.uuid, disk.target, disk.to)
        checkpoints.recall(job)


class Pivot(Step):
    """Stand the guest still for an instant, and make all disks run from the destination."""

    says = "switching to the destination"

    def do(self, job: Job) -> None:
        power = job.host.power(job.uuid)
        if power is Power.OFF:
            self._finish_off(job)
            return
        pending = _pending(job)
        prove(job, rounds(job), mirrored=True)
        arm(job, [disk for disk in pending if not job.host.mirroring(job.uuid, disk.target)])
        _let_catch_up(job, pending)
        if not self.crossed(job):
            prove_copies(job, START_AGAIN, used=True)
        self._switch(job, pending)

    def undo(self, job: Job) -> None:
        """Let the guest go on if it ran: no disk was switched."""
        if job.facts.ran and power_of(job.host, job.uuid) is Power.PAUSED:
            job.host.resume(job.uuid)

    def found(self, job: Job) -> bool:
        standing = job.facts.ran and job.host.power(job.uuid) is Power.PAUSED
        return not standing and all(over(job, disk) for disk in job.frozen_disks)

    def crossed(self, job: Job) -> bool:
        return _any_over(job)

    def _switch(self, job: Job, pending: Iterable[DiskMove]) -> None:
        """Suspend the guest, pivot the disks, resume it if it ran; record the pause in seconds. Raises ChainChanged.

        Whether it ran is asked as late as possible: a person may have paused it meanwhile, and then it stays paused.
        """
        cut_off = job.facts.standing
        if not cut_off:
            job.facts.ran = job.host.power(job.uuid) is Power.RUNNING
            job.facts.standing = True
        begun = time.monotonic()
        if not job.host.suspend(job.uuid) and not cut_off:
            job.facts.ran = False
        prove(job, rounds(job), mirrored=True)
        for disk in pending:
            job.host.pivot(job.uuid, disk.target)
        if job.facts.ran:
            job.host.resume(job.uuid)
        job.facts.pause_s = round(time.monotonic() - begun, 4)

    def _finish_off(self, job: Job) -> None:
        """After QEMU ended between two pivots, fold the other overlays as files, and point the VM at the copies.

        Raises GuestGone if no disk was switched.
        """
        if not self.crossed(job):
            raise GuestGone(vm=job.plan.vm)
        for disk in job.frozen_disks:
            if not over(job, disk):
                prove_files(job, disk, rounds(job))
                overlay = closed_overlay(job, disk, rounds(job))
                drop(job, overlay)
                bring(job, [overlay], disk.target, hurry=True)
                fold(job, [overlay])
                writing(job)  # somebody may start the VM: it has copies that were switched to
        job.host.point(job.uuid, final_images(job), {}, sources(job))


def arm(job: Job, disks: Iterable[DiskMove]) -> None:
    """Start the mirrors that do not run, and wait until all are ready."""
    disks = list(disks)
    limit = _limit(job, disks)
    looks = 0
    while not all([_ready(job, disk) for disk in disks]):  # a list: every disk reports
        job.control.wait(SMALL_REST_POLL_S if looks < SMALL_REST_LOOKS else MIRROR_POLL_S)
        spare_source(job)
        looks += 1
        if looks == SLOW_LOOKS:
            job.control.says(f"the guest writes as fast as the mirror copies: `vmferry job limit {job.id} none` helps")
        if job.control.throttle.ordered_bytes_s != limit:
            limit = _limit(job, disks)


def _limit(job: Job, disks: list[DiskMove]) -> int | None:
    """Start the mirrors, or give running ones their share of the job's limit. Returns the limit."""
    limit = job.control.throttle.ordered_bytes_s  # giving way to a guest, it would never catch up with it
    for disk in disks:
        share = max(1, limit // len(disks)) if limit else None
        job.host.mirror(job.uuid, disk.target, disk.to, share)
    return limit


def _wait_until_open(job: Job) -> None:
    """Wait while a calendar lets nothing move: a mirror that was begun has to go on to its end."""
    while why := job.control.throttle.closed:
        job.control.says(why)
        job.control.wait(CALENDAR_POLL_S)
        spare_source(job)
    job.control.says(Mirror.says)


def _let_catch_up(job: Job, disks: Iterable[DiskMove]) -> None:
    """Wait, CATCH_UP_LOOKS looks at most, until the mirrors have little left: it is written while the guest stands."""
    disks = list(disks)
    for _ in range(CATCH_UP_LOOKS):
        left = 0
        for disk in disks:
            _, done, total = job.host.mirrored(job.uuid, disk.target)
            left += total - done
        if left <= LITTLE_BYTES:
            return
        job.control.wait(MIRROR_POLL_S)


def _ready(job: Job, disk: DiskMove) -> bool:
    try:
        ready, done, total = job.host.mirrored(job.uuid, disk.target)
    except VmHeld:
        raise  # it told nothing of the mirror
    except HostRefused as refused:
        if job.host.power(job.uuid) is Power.OFF:
            raise GuestGone(vm=job.plan.vm) from refused
        prove(job, rounds(job), mirrored=True)  # a mirror ends when its disk is resized, and blames the destination
        raise MirrorEnded(vm=job.plan.vm, target=disk.target, reason=refused.fields["reason"]) from refused
    job.control.disk(DiskProgress(disk.target, done, total), 0.0)
    return ready
