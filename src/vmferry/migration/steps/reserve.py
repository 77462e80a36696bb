"""First steps: check the plan once more, and define a transient VM, before anything is copied."""

from __future__ import annotations

from vmferry.errors import DestinationExists, VmChanged, VolumeChanged
from vmferry.migration.steps.chains import note
from vmferry.migration.steps.checkpoints import note_checkpoints
from vmferry.migration.steps.step import Job, Step, file_of
from vmferry.model import ImageMove, listed


class Reserve(Step):
    """Check once more that all is as it was planned, since the job may have waited.

    The room itself is reserved by the job's being active: preflight counts the plans of all active jobs.
    """

    says = "reserving room"

    def do(self, job: Job) -> None:
        vm = job.host.vm(job.uuid)
        if vm.power is not job.plan.power:
            raise VmChanged(vm=vm.name, change=f"it was {job.plan.power} and is {vm.power}")
        present = {disk.target: disk for disk in vm.disks}
        for move in job.plan.disks:
            disk = present.get(move.target)
            if disk is None or disk.active.path != move.active.source:
                raise VmChanged(vm=vm.name, change=f"disk {move.target} is no longer {move.active.source}")
        note(job)
        note_checkpoints(job)
        made = [image.destination for image in job.plan.images if not image.to_volume]
        for destination in [*made, *(file.destination for file in job.plan.files)]:
            if job.there.exists(file_of(destination)):
                raise DestinationExists(path=destination)
        for image in job.plan.images:
            if image.to_volume and (change := _change(job, image)):
                raise VolumeChanged(path=image.destination, change=change)


def _change(job: Job, image: ImageMove) -> str:
    """Say why a volume may no longer be written to, empty if it may: somebody may have begun to use it meanwhile."""
    volume = job.there.volume(image.destination)
    if volume is None:
        return "it is gone"
    if volume.trouble:
        return volume.trouble
    if users := [user for user in job.ask(job.there, [image.destination], ()) if user.holds]:
        return f"it is needed by {listed(users)}"
    if volume.holds and not job.plan.overwrite:
        return f"it is not empty: {volume.holds}"
    needed = volume.lacks(image.virtual_bytes, image.to.format)
    return f"it has {volume.size_bytes} bytes, {needed} are needed" if needed else ""


class KeepDefined(Step):
    """Define a transient VM for the time of the move, so that it outlives a QEMU that is killed."""

    says = "keeping the VM's definition"

    def do(self, job: Job) -> None:
        if not job.plan.persistent:
            job.host.make_persistent(job.uuid)

    def undo(self, job: Job) -> None:
        if not job.persistent:
            job.host.make_transient(job.uuid)

    def found(self, job: Job) -> bool:
        return job.plan.persistent
