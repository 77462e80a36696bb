"""Overlays that a VM's disk no longer lies on: were they merged, or does a definition leave them out that was put back?

`virsh define` of an older XML, and a snapshot-revert that fails half way, make the next start use the base. What the
guest wrote since the freeze is in the overlays alone then.
"""

from __future__ import annotations

from enum import Enum

from vmferry.migration.steps.chains import disk_now, note_run, run_anew
from vmferry.migration.steps.step import Job, file_of, known, overlays, power_of
from vmferry.model import DiskMove, Power


class Found(Enum):
    ON_CHAIN = "the disk lies on its overlays, or they were merged"
    LEFT_OUT = "nothing has run without them"
    RUN_WITHOUT = "the VM has run without them, or may have: they do not fit what it wrote"


def note_frozen(job: Job) -> None:
    """Record the change stamps of what was frozen, which nobody writes to before the overlays are merged."""
    note_run(job)
    for disk in job.frozen_disks:
        if not disk.active.from_volume:
            job.facts.frozen_mark[disk.active.source] = job.host.mark_of(file_of(disk.active.source))


def find(job: Job, disk: DiskMove) -> Found:
    """Say what becomes of a disk's overlays in an undo that has not begun to merge them."""
    if job.facts.going_home[disk.target] or not known(job.host, job.uuid):
        return Found.ON_CHAIN
    now, own = disk_now(job, job.host, disk), overlays(job, disk)
    if now is None or not now.chain or any(image.path in own for image in now.chain):
        return Found.ON_CHAIN
    if not any(job.host.exists(overlay) for overlay in own):
        return Found.ON_CHAIN
    if power_of(job.host, job.uuid) is not Power.OFF:
        return Found.RUN_WITHOUT if run_anew(job) else Found.ON_CHAIN
    if job.host.vm(job.uuid).managed_save:
        return Found.ON_CHAIN  # that names them
    noted = job.facts.frozen_mark[disk.active.source]
    if job.facts.run is None:
        return Found.ON_CHAIN  # an earlier version froze it
    if not noted:
        return Found.RUN_WITHOUT  # a device does not tell
    same = now.active.path == disk.active.source and job.host.mark_of(file_of(disk.active.source)) == noted
    return Found.LEFT_OUT if same else Found.RUN_WITHOUT
