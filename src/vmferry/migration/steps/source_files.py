"""The files at the source are told by what they are: a path may lead to another file by now.

QEMU has open what it opened, whatever has the name since: `mv`, `ln -sfn` of a folder, a mount over it.
"""

from __future__ import annotations

from pathlib import Path

from vmferry.errors import ChainChanged, SourceGone, SourceGoneRunning
from vmferry.migration.steps.step import Job, file_of, inode_of, known, overlays, power_of
from vmferry.model import DiskMove, ImageMove, Lost, Power


def note_inode(job: Job, path: Path) -> None:
    """Record which file has this path, once: before the job touches it, or as soon as the job has made it."""
    if job.facts.source_inode[path] is None and (inode := inode_of(job.host, path)):
        job.facts.source_inode[path] = inode


def note_overlays(job: Job, round_: int) -> None:
    """Record which files the overlays of this round are."""
    for disk in job.frozen_disks:
        note_inode(job, job.overlay(disk, round_))


def is_other(job: Job, path: Path) -> bool:
    """Tell whether another file has this path than the one that was noted; False where none has, or none was noted."""
    noted = job.facts.source_inode[path]
    return bool(noted) and inode_of(job.host, path) not in ("", noted)


def prove_files(job: Job, disk: DiskMove, round_: int | None) -> None:
    """Raise ChainChanged if an image of the disk, or an overlay up to this round, is gone or another file by its path.

    Overlays that are folded into the copy already are not looked at.
    """
    newest = -1 if round_ is None or not disk.frozen else round_
    own = [job.overlay(disk, n) for n in range(max(0, job.facts.folded - 1), newest + 1)]
    images = [image.source for image in disk.images if isinstance(image.source, Path)]
    for path in (*own, *images):
        if (noted := job.facts.source_inode[path]) is None:
            continue
        now = inode_of(job.host, path)
        if not now:
            raise ChainChanged(vm=job.plan.vm, change=f"{path}, of disk {disk.target}, is gone")
        if now != noted:
            raise ChainChanged(vm=job.plan.vm, change=f"another file than that of disk {disk.target} is {path} now")


def prove_home(job: Job) -> None:
    """Raise SourceGone unless each disk that goes back on its own images, or never left them, has those and no others.

    A QEMU that runs has an image open that was removed or replaced: what is merged into that is gone with QEMU. One
    that is off would have its overlays merged into whatever has the name.
    """
    if job.lost is Lost.SOURCE:
        return
    defined, power = known(job.host, job.uuid), power_of(job.host, job.uuid)
    for disk in job.plan.disks:
        own = overlays(job, disk) if disk.frozen else []
        if defined and job.host.active_image(job.uuid, disk.target) not in (disk.active.source, *own):
            continue  # on what somebody else gave it
        for image in disk.images:
            if image.from_volume or not isinstance(image.source, Path):
                continue
            gone = defined and job.host.entry(image.source) is None
            if gone or (is_other(job, image.source) and not (power is Power.OFF and _is_as_good(job, image))):
                raise _gone(job, disk, image.source, runs=power is not Power.OFF)
        if not job.facts.home[disk.target]:
            for overlay in own:
                if is_other(job, overlay):
                    raise _gone(job, disk, overlay, runs=power is not Power.OFF)


def _is_as_good(job: Job, image: ImageMove) -> bool:
    """Tell whether somebody has put the copy back in place of what was lost, and note that file then.

    Byte for byte, by BLAKE3 of both.
    """
    source = file_of(image.source)
    if image.to_volume or not job.facts.placed[image.destination]:
        return False
    there = job.there.content_of(file_of(image.destination))
    if there == "" or job.host.content_of(source) != there:
        return False
    job.facts.source_inode[source] = None
    note_inode(job, source)
    return True


def _gone(job: Job, disk: DiskMove, path: Path, *, runs: bool) -> SourceGone:
    copies = {image.source: image.destination for image in disk.images}
    copy = f" (its copy is {copies[path]})" if path in copies and job.facts.verified else ""
    error = SourceGoneRunning if runs else SourceGone
    return error(path=path, host=job.host.name, copy=copy, vm=job.plan.vm, target=disk.target, job=job.id)
