"""Steps that copy the base, compare it, and give the copies their real names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from vmferry.errors import CopyReplaced, CopyWritten, DestinationExists
from vmferry.migration.steps.chains import near, own_images, unneeded
from vmferry.migration.steps.progress import ControlWatch, copy_verified, phase
from vmferry.migration.steps.source_files import prove_home
from vmferry.migration.steps.step import Job, Step, added, file_of, inode_of
from vmferry.model import FileMove, ImageMove, Leaving, Lost, Placed, UserKind, Where

START_AGAIN = "start the move again"


class CopyBase(Step):
    """Copy every image of every disk, while the guest writes elsewhere."""

    says = "copying the base"
    may_stand = True
    undone_last = True

    def do(self, job: Job) -> None:
        seconds = 0.0
        with phase(job, "copy base") as moved:
            for image, watch in _each_image(job):
                _note_mark(job, image)
                copied = job.there.copy(job.opened(job.base_transfer(image)), watch)
                job.facts.copied[image.source] = copied.copied_bytes + copied.reused_bytes
                job.facts.hash[image.source] = copied.root_hash
                moved.append(copied.copied_bytes)
                seconds += copied.seconds
        if seconds > 0.05 and sum(moved) > 1 << 20:
            job.facts.rate_bytes_s = round(sum(moved) / seconds)
            throttle = job.control.throttle
            job.facts.limited = throttle.slowed or throttle.tightest_bytes_s is not None

    def undo(self, job: Job) -> None:
        """Drop the copies. Raises SourceGone while the VM's own disks are not there: a copy may be all that is left."""
        prove_home(job)
        for image in job.plan.images:
            job.there.drop(job.closed(job.base_transfer(image)))
        if job.plan.relocates:
            job.host.end_serving()
            job.there.end_serving()


class CompareBase(Step):
    """Compare every byte of the copies, by hash, with what was read."""

    says = "comparing every byte"
    may_stand = True

    def do(self, job: Job) -> None:
        recopied = 0
        with phase(job, "compare base") as read:
            for image, watch in _each_image(job):
                compared = job.there.compare(job.opened(job.base_transfer(image)), watch)
                job.facts.hash[image.source] = compared.root_hash
                if compared.seal:
                    job.facts.seal[image.source] = json.dumps(asdict(compared.seal))
                read.append(compared.bytes)
                recopied += compared.recopied_chunks
        job.facts.verified = True
        job.facts.recopied_chunks = recopied


class Promote(Step):
    """Give the copies their real names, bases first, each naming its new backing file."""

    says = "giving the copies their names"
    undone_last = True

    def do(self, job: Job) -> None:
        for image in _named(job):
            part = job.part(image)
            if not job.there.exists(part):
                continue  # promoted before we were cut off
            if image.backing is not None:
                job.there.rebase(part, Placed(Path(image.backing), image.backing_format or "raw"))
            job.there.promote(part, file_of(image.destination))
        for image in _named(job):
            job.facts.placed[image.destination] = inode_of(job.there, file_of(image.destination))
        note_copies(job)

    def undo(self, job: Job) -> None:
        """Take the names back, but of copies that an image of somebody's lies on: those stay.

        Raises StillNamed where a VM is on a copy: that it keeps, whoever put it there. Raises SourceGone.
        """
        prove_home(job)
        staying = copies_that_stay(job)
        for image in _named(job):
            if file_of(image.destination) not in staying:
                take_back(job, file_of(image.destination), job.part(image))


class CopyFiles(Step):
    """Copy the VM's small files (NVRAM), now that nothing writes to them."""

    says = "copying the VM's other files"
    undone_last = True

    def do(self, job: Job) -> None:
        for file in job.plan.files:
            part = job.file_part(file)
            if not job.facts.file[file.destination]:
                _bring(job, file)
                job.facts.file[file.destination] = True
            if job.there.exists(part):
                job.there.promote(part, file.destination)

    def undo(self, job: Job) -> None:
        for file in job.plan.files:
            part = job.file_part(file)
            if job.facts.file[file.destination]:
                take_back(job, file.destination, part)
            if job.plan.relocates:
                job.there.drop(job.closed(job.transfer(file.source, part)))
            job.there.remove(part)


def _bring(job: Job, file: FileMove) -> None:
    if job.plan.relocates:
        copy_verified(job, [job.transfer(file.source, job.file_part(file))], job.plan.disks[0].target, hurry=True)
    else:
        job.host.small_copy(file.source, job.file_part(file))


def _note_mark(job: Job, image: ImageMove) -> None:
    """Record the change stamp of a source file on another host, which later tells if somebody has written to it."""
    if job.plan.relocates and isinstance(image.source, Path) and job.facts.mark[image.source] is None:
        job.facts.mark[image.source] = job.host.mark_of(image.source)


def _named(job: Job) -> list[ImageMove]:
    """Return the images that are copied under a temporary name; a volume has its own name from the beginning."""
    return [image for image in job.plan.images if not image.to_volume]


def prove_copies(job: Job, cure: str, *, used: bool = False) -> None:
    """Raise CopyReplaced, with this cure, unless each copy is the file that was compared and given its name.

    Raises CopyWritten if somebody else has written to one since. `used`: the VM may have written to them.
    """
    for image in _named(job):
        if job.facts.placed[image.destination] and not _in_place(job, image):
            raise CopyReplaced(path=image.destination, host=job.there.name, cure=cure)
        noted = job.facts.unwritten[image.destination]
        if noted and not used and job.there.mark_of(file_of(image.destination)) != noted:
            raise CopyWritten(path=image.destination, host=job.there.name, cure=cure)


def note_copies(job: Job) -> None:
    """Record the change stamps of copies that have none: nobody but the job writes to them until the VM is on them."""
    for image in _named(job):
        if not job.facts.unwritten[image.destination]:
            job.facts.unwritten[image.destination] = job.there.mark_of(file_of(image.destination))


def writing(job: Job) -> None:
    """Record that the job, or the VM, begins to write to the copies: their change stamps tell nothing any more."""
    for disk in job.frozen_disks:
        if not disk.active.to_volume:
            job.facts.unwritten[disk.active.destination] = ""


def prove_off_copies(job: Job) -> None:
    """Raise StillNamed where the disk of a VM is on a copy, put there by hand: only forward is its content kept."""
    for path in _placed(job):
        unneeded(job.there, path)


def _placed(job: Job) -> list[Path]:
    return [file_of(image.destination) for image in _named(job) if _in_place(job, image)]


def copies_that_stay(job: Job) -> frozenset[Path]:
    """Return the copies that an image of somebody's lies on, with those below them, and note them.

    Raises StillNamed where the disk of a VM is on one.
    """
    if job.lost is Lost.DESTINATION:
        return frozenset()
    prove_off_copies(job)
    placed = _placed(job)
    users = [user for user in job.ask(job.there, placed, near(job, *placed)) if user.kind is UserKind.IMAGE]
    goes = frozenset[Where](placed)
    leaving = Leaving(job.uuid, frozenset(), goes, own=own_images(job, job.there), moved=True)
    stay = frozenset(file_of(path) for path in leaving.others_in_turn(users))
    if stay:
        job.facts.stayed = added(job.facts.stayed, sorted(stay))
    return stay


def _in_place(job: Job, image: ImageMove) -> bool:
    """Tell whether the destination's name is that of the copy that was given it."""
    placed = job.facts.placed[image.destination]
    return bool(placed) and inode_of(job.there, file_of(image.destination)) == placed


def take_back(job: Job, final: Path, part: Path) -> None:
    """Undo a promotion: rename `final` to `part`. While both exist and differ, `final` is not the job's, and stays."""
    if not job.there.exists(final):
        return
    try:
        job.there.promote(final, part)
    except DestinationExists:
        return


def _each_image(job: Job) -> list[tuple[ImageMove, ControlWatch]]:
    """Return every image once, bases first, with a watch that counts its progress within its disk."""
    seen: set[Where] = set()
    each = []
    for disk in job.plan.disks:
        images = [image for image in reversed(disk.images) if image.source not in seen]
        total = sum(image.data_bytes for image in images)
        before = 0
        for image in images:
            seen.add(image.source)
            each.append((image, ControlWatch(job, disk.target, before, total)))
            before += image.data_bytes
    return each
