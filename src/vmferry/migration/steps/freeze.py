"""The freeze: the guest's writes go to overlays, so that the base stops changing; and their way home."""

from __future__ import annotations

import time
from pathlib import Path

from vmferry.hosts.records import Quiesced
from vmferry.migration.steps.chains import overlays_that_stay, prove, unneeded
from vmferry.migration.steps.copying import prove_off_copies
from vmferry.migration.steps.left_out import Found, find, note_frozen
from vmferry.migration.steps.progress import ControlWatch, spare_source
from vmferry.migration.steps.source_files import is_other, note_overlays, prove_home
from vmferry.migration.steps.step import Job, Step, added, overlays, power_of, rounds
from vmferry.model import DiskMove, Power

QUIESCE_S = 5.0
THAW_S = 300.0
"""So long a job waits for a guest agent that may have frozen its guest; a freeze writes out all that is dirty."""
THAW_POLL_S = 1.0
"""Between two calls of an agent that is to thaw its guest."""


class Freeze(Step):
    """Send the guest's writes to new overlays, so that the base stops changing."""

    says = "freezing the disks"

    def do(self, job: Job) -> None:
        """Put each disk on a new overlay, with the guest's file systems frozen where its agent answers.

        The agent is told to freeze only once, and to thaw wherever it may have frozen: an interruption between the two,
        such as a kill of libvirtd, would leave the guest standing for good.
        """
        cut_off = job.facts.thaw_owed
        if all(job.round_of(disk) is None for disk in job.frozen_disks):
            prove(job, None)
        if job.plan.agent:
            job.facts.thaw_owed = True
        fresh = {disk.target: job.overlay(disk, 0) for disk in job.frozen_disks}
        quiesced = job.host.freeze(job.uuid, fresh, QUIESCE_S if job.plan.agent and not cut_off else None)
        job.facts.frozen = True
        note_overlays(job, 0)
        note_frozen(job)
        job.facts.grows_since = time.time()
        if not job.plan.agent:
            return
        job.facts.quiesced = (Quiesced.YES if quiesced is Quiesced.YES else Quiesced.NO).value
        if cut_off or quiesced is Quiesced.UNSURE:
            thaw(job)
        else:
            job.facts.thaw_owed = False

    def undo(self, job: Job) -> None:
        """Merge the overlays back into what lies below them; a guest that runs keeps running.

        What another tool has put on them stays on top. No overlay is removed that a VM's disk or an image names. Raises
        StillNamed, SourceGone.
        """
        if job.facts.thaw_owed:
            thaw(job)
        job.facts.frozen = False
        if job.plan.relocates:
            job.host.end_serving()  # what is served of the images is locked against writing
        prove_home(job)
        if not job.plan.relocates:
            prove_off_copies(job)
        put_home(job)
        staying, kept = overlays_that_stay(job, moved=False), job.facts.unmerged or ()
        for disk in job.frozen_disks:
            for overlay in reversed(overlays(job, disk)):
                unneeded(job.host, overlay)
                if overlay not in staying and str(overlay) not in kept and not is_other(job, overlay):
                    job.host.remove(overlay)

    def found(self, job: Job) -> bool:
        frozen = all(job.round_of(disk) is not None for disk in job.frozen_disks)
        if frozen:
            job.facts.frozen = True
            note_overlays(job, rounds(job))
            if job.facts.run is None:
                note_frozen(job)
        return frozen and not job.facts.thaw_owed


def put_home(job: Job) -> None:
    """Merge each disk's overlays into what lies below.

    A host may stand the guest still for the instant of a switch. A guest that an interrupted attempt left standing is
    resumed here; one that a person pauses meanwhile is not.
    """
    cut_off = job.facts.merging
    if cut_off is None:
        job.facts.merging = power_of(job.host, job.uuid) is Power.RUNNING
    for disk in job.frozen_disks:
        own = overlays(job, disk)
        if not job.facts.home[disk.target]:  # what is home may have been written to since
            _merge(job, disk)
            job.facts.home[disk.target] = True
        if isinstance(disk.active.source, Path):
            job.host.rewrite_snapshots(job.uuid, dict.fromkeys(own, disk.active.source))
    if cut_off is True and power_of(job.host, job.uuid) is Power.PAUSED:
        job.host.resume(job.uuid)
    job.facts.merging = None


def _merge(job: Job, disk: DiskMove) -> None:
    """Merge a disk's overlays into what lies below; those without which the VM has run since are kept as they are."""
    own, found = overlays(job, disk), find(job, disk)
    if found is Found.RUN_WITHOUT:
        job.facts.unmerged = added(job.facts.unmerged, filter(job.host.exists, own))
        return
    job.facts.going_home[disk.target] = True
    watch, unmerged = ControlWatch(job, disk.target), found is Found.LEFT_OUT
    job.host.unfreeze(job.uuid, disk.target, own, disk.from_, watch, unmerged=unmerged)


def thaw(job: Job) -> None:
    """Ask the guest agent to thaw until it says that it has; give up after THAW_S, with `thaw_owed` still set."""
    job.control.says("waiting for the guest agent: the guest's file systems may be frozen")
    end = time.monotonic() + THAW_S
    while not job.host.thaw(job.uuid, QUIESCE_S):
        if time.monotonic() > end:
            return
        job.control.wait(THAW_POLL_S)
        spare_source(job)
    job.facts.thaw_owed = False
