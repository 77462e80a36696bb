"""Checkpoints that cannot go along: no backup may be based on one whose bitmap no longer tells all that was written.

A bitmap lies in the image, and an image that is copied by content has none. But libvirt puts bitmaps of the same names
into the overlays, and a mirror's pivot takes those over into the copy: they tell of the writes since the freeze alone.
"""

from __future__ import annotations

from vmferry.errors import ChainChanged, NoSuchVm
from vmferry.migration.steps.step import Job
from vmferry.model import Definition


def note_checkpoints(job: Job) -> None:
    """Record the names of the VM's checkpoints before the job touches it."""
    if job.facts.noted_checkpoints is None:
        job.facts.noted_checkpoints = list(job.host.vm(job.uuid).checkpoints)


def prove_none_taken(job: Job) -> None:
    """Raise ChainChanged if somebody has taken a checkpoint since: its bitmap lies in an overlay alone.

    Folded into the copy, that bitmap is lost, and a backup based on it would lack what was written between (seen: 332
    of 332 blocks). Undone, it is whole.
    """
    noted = job.facts.noted_checkpoints
    if noted is None:
        return
    try:
        now = job.host.vm(job.uuid).checkpoints
    except NoSuchVm:
        return
    if taken := set(now) - set(noted):
        raise ChainChanged(vm=job.plan.vm, change=f"the checkpoint {', '.join(sorted(taken))} was taken")


def forget(job: Job) -> None:
    """Make libvirt forget the VM's checkpoints before a mirror is begun: from here on an incremental backup fails."""
    if job.plan.checkpoints:
        _written(job)
        job.host.forget_checkpoints(job.uuid)


def recall(job: Job) -> None:
    """Give the VM its checkpoints back after the move was undone: they are as good as they were."""
    if job.plan.checkpoints and job.facts.checkpoints is not None:
        job.host.recall_checkpoints(_written(job))


def drop(job: Job) -> None:
    """Remove the checkpoints, and what the copies took over of their bitmaps, after the VM has moved."""
    if job.plan.checkpoints:
        job.there.drop_checkpoints(_written(job))


def _written(job: Job) -> Definition:
    """Return the definition with its checkpoints as first read: an attempt that was cut off may have forgotten some."""
    text = job.facts.checkpoints
    if text is not None:
        return Definition.load(text)
    definition = job.there.definition(job.uuid)
    job.facts.checkpoints = definition.dump()
    return definition
