"""What libvirt has written down about the VM."""

from __future__ import annotations

from vmferry.errors import NotSeenRunning, SourceChanged, VmChanged
from vmferry.model import Power
from vmferry.steps.base import Job, Step
from vmferry.steps.saved import first_images, last_images


class Point(Step):
    """Make the definition of the VM, which is in saved state, use the destination."""

    says = "pointing the VM at the destination"

    def do(self, job: Job) -> None:
        job.host.point(job.uuid, last_images(job), job.file_paths())

    def undo(self, job: Job) -> None:
        job.host.point(job.uuid, first_images(job), {new: old for old, new in job.file_paths().items()})


class PointOffline(Step):
    """Make a VM that is off use the destination, if nobody touched it meanwhile."""

    says = "pointing the VM at the destination"

    def do(self, job: Job) -> None:
        if job.host.power(job.uuid) is not Power.OFF:
            raise VmChanged(vm=job.plan.vm, change="it was started while it was copied")
        for image in job.plan.images:
            if not job.host.unchanged_since(job.base_transfer(image)):
                raise SourceChanged(path=image.source)
        job.host.point(job.uuid, {d.target: d.to for d in job.plan.disks}, job.file_paths())

    def found(self, job: Job) -> bool:
        return all(job.host.active_image(job.uuid, disk.target) == disk.active.destination for disk in job.plan.disks)


class Settle(Step):
    """Make everything that libvirt has written down agree with what runs."""

    says = "settling the VM's definition"

    def do(self, job: Job) -> None:
        job.there.point(job.uuid, {d.target: d.to for d in job.plan.disks}, job.file_paths())
        job.there.rewrite_snapshots(job.uuid, job.paths())
        for disk in job.plan.disks:
            if job.there.active_image(job.uuid, disk.target) != disk.active.destination:
                raise NotSeenRunning(vm=job.plan.vm, path=disk.active.destination)
        job.facts.put("seen", value=True)
        if not job.plan.persistent:
            job.there.make_transient(job.uuid)

    def found(self, job: Job) -> bool:
        return job.facts.get("seen") is True and (job.plan.persistent or not job.there.defined(job.uuid))
