"""Steps that change what libvirt has written down about the VM."""

from __future__ import annotations

from pathlib import Path

from vmferry.errors import NotSeenRunning, SourceChanged, VmChanged, VmferryError
from vmferry.migration.steps import checkpoints
from vmferry.migration.steps.chains import on_copy, sources
from vmferry.migration.steps.copying import START_AGAIN, prove_copies
from vmferry.migration.steps.saved_state import (
    final_images,
    first_images,
    keep_known,
    nothing_put_on,
    on_final_images,
    overtaken,
    still_saved,
)
from vmferry.migration.steps.step import Job, Step
from vmferry.model import Power


class Point(Step):
    """Make the definition of the VM, which is in saved state, use the destination."""

    says = "changing the VM's definition to the destination"

    def do(self, job: Job) -> None:
        """Point the definition at the copies. Raises VmChanged, ChainChanged.

        Until then a VM that somebody starts runs on the overlays, also while no worker is at work on the job.
        """
        keep_known(job)
        if not on_final_images(job):
            still_saved(job)
        if job.host.point(job.uuid, final_images(job), job.file_paths(), sources(job)):
            nothing_put_on(job)  # in the instant since that was asked

    def undo(self, job: Job) -> None:
        keep_known(job)
        back = {new: old for old, new in job.file_paths().items()}
        job.host.point(job.uuid, first_images(job), back, sources(job))

    def overtaken(self, job: Job) -> bool:
        return overtaken(job)


class PointOffline(Step):
    """Make a VM that is off use the destination, if nobody touched it meanwhile."""

    says = "changing the VM's definition to the destination"

    def do(self, job: Job) -> None:
        if job.host.power(job.uuid) is not Power.OFF:
            raise VmChanged(vm=job.plan.vm, change="it was started while it was copied")
        for image in job.plan.images:
            if not job.host.unchanged_since(job.base_transfer(image)):
                raise SourceChanged(path=image.source)
        for disk in job.plan.disks:
            if job.host.active_image(job.uuid, disk.target) not in (disk.active.source, disk.active.destination):
                raise VmChanged(vm=job.plan.vm, change=f"disk {disk.target} is no longer {disk.active.source}")
        prove_copies(job, START_AGAIN)
        job.host.point(job.uuid, final_images(job), job.file_paths(), sources(job))

    def found(self, job: Job) -> bool:
        return on_final_images(job)


class Settle(Step):
    """Make everything that libvirt has written down agree with what runs."""

    says = "writing the VM's final definition"

    def do(self, job: Job) -> None:
        """Point definition and snapshots at the destination, and check that each disk is there. Raises NotSeenRunning.

        Where a person has made the definition name another image, that stays, and the receipt says so.
        """
        known = {} if job.plan.relocates else sources(job)  # another host knows no path of the source
        others = list(job.there.point(job.uuid, final_images(job), job.file_paths(), known))
        if not job.plan.relocates:
            job.facts.next_start = others
        job.there.rewrite_snapshots(job.uuid, job.paths())
        checkpoints.drop(job)
        off = job.there.power(job.uuid) is Power.OFF
        for disk in job.plan.disks:
            if off and disk.target in others:
                continue
            if on_copy(job, job.there, disk) is False:
                raise NotSeenRunning(vm=job.plan.vm, path=disk.active.destination)
        job.facts.stayed = _stayed(job)
        job.facts.seen = True
        if not job.persistent:
            job.there.make_transient(job.uuid)

    def found(self, job: Job) -> bool:
        return job.facts.seen and (job.persistent or not job.there.defined(job.uuid))


def _stayed(job: Job) -> list[str]:
    """List the VM's other disks in the folders that are left, also those that somebody attached during the move."""
    if job.plan.relocates:
        return []
    moved = {disk.target for disk in job.plan.disks}
    left = {image.source.parent for image in job.plan.images if isinstance(image.source, Path)}
    try:
        disks = job.there.vm(job.uuid).disks
    except VmferryError:  # it has ended, or one of those cannot be read: nothing that the job must wait for
        return []
    named = [(disk.target, disk.active.path) for disk in disks if disk.target not in moved and disk.chain]
    return [f"{path} ({target})" for target, path in named if isinstance(path, Path) and path.parent in left]
