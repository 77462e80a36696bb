"""Quick cut-over: saved state, the last overlay folded into the copy, and the VM again from the destination."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from vmferry.errors import ChainChanged, GuestGone, VmChanged, VmferryError
from vmferry.hosts.interface import Host
from vmferry.migration.steps.chains import disk_now, on_copy, prove
from vmferry.migration.steps.checkpoints import prove_none_taken
from vmferry.migration.steps.clock import set_clock
from vmferry.migration.steps.closed_files import ClosedFile, bring, drop, fold
from vmferry.migration.steps.copying import START_AGAIN, prove_copies
from vmferry.migration.steps.memory_stream import MemoryStream, save_rate
from vmferry.migration.steps.progress import ControlWatch, phase
from vmferry.migration.steps.proof import load, load_home, prove_start
from vmferry.migration.steps.rounds import last_overlays
from vmferry.migration.steps.source_files import prove_files, prove_home
from vmferry.migration.steps.step import Job, Step, file_of, known, overlays, power_of, rounds
from vmferry.model import DiskMove, Placed, Power


class Save(Step):
    """Put the VM into saved state; its memory is written while the guest still runs."""

    says = "saving the guest's memory"

    def do(self, job: Job) -> None:
        power = job.host.power(job.uuid)
        if power is Power.OFF:
            raise GuestGone(vm=job.plan.vm)
        prove(job, rounds(job))
        prove_copies(job, START_AGAIN)
        prove_none_taken(job)
        if job.facts.ran is None:
            job.facts.ran = power is Power.RUNNING
        prove_start(job)
        if not job.host.defined(job.uuid):
            job.facts.undefined = True
            job.host.make_persistent(job.uuid)  # libvirt saves no memory of one that is not defined
        with phase(job, "save memory") as moved:
            self._save(job)
            moved.append(job.host.allocated(job.saved))
        note_saved(job)
        if job.plan.relocates:
            note_standing(job)

    def _save(self, job: Job) -> None:
        """Write the guest's memory.

        What an attempt that was cut off carried of another saved state to the other host is dropped first.
        """
        watch = ControlWatch(job, job.plan.disks[0].target)
        if job.plan.relocates:
            drop(job, saved_memory(job))
            watch = MemoryStream(job, saved_memory(job))
        if job.host.save(job.uuid, job.saved, watch, save_rate(job)):
            job.facts.ran = False  # whoever paused it meanwhile lets it run

    def undo(self, job: Job) -> None:
        """Bring the guest back on the disks that it had before the move, from its saved state, which is then spent.

        The overlays are folded into them first, while nobody has them open: a QEMU that was started on the overlays may
        not be allowed to write what lies below (AppArmor's profile denies it), and they would stay for good.
        """
        keep_known(job)
        if known(job.host, job.uuid):  # else somebody stopped and undefined it: what it wrote to its disks is all
            self._bring_back(job)
        job.host.remove(job.saved)
        if job.plan.relocates:
            drop(job, saved_memory(job))

    def _bring_back(self, job: Job) -> None:
        ran = bool(job.facts.ran)
        if job.host.saved(job.uuid, job.saved) and not job.host.spent(job.saved):
            load_home(job, self._fold_home(job))
        if job.host.power(job.uuid) is Power.PAUSED:
            if job.host.exists(job.saved):
                job.facts.stood_back_s = job.host.standing_s(job.uuid)  # cut off after it, the clock is set too
                job.facts.stood_back_s = job.host.release(job.uuid, job.saved, run=ran)
            elif ran:
                job.host.resume(job.uuid)
        if ran and job.host.power(job.uuid) is Power.RUNNING:  # a save that was cut off made it stand too
            set_clock(job, job.host, job.facts.stood_back_s or 0.0)

    def _fold_home(self, job: Job) -> dict[str, Placed]:
        """Fold the overlays into the source's images and return, by target, what the VM is to be loaded on.

        What another tool put on the overlays stays on top. The definition names the overlays until the saved state is
        dated anew: if this is cut off before, the saved state is still found. Raises SourceGone.
        """
        prove_home(job)
        homes = {disk.target: disk.from_ for disk in job.plan.disks}
        for disk in job.frozen_disks:
            own, watch = overlays(job, disk), ControlWatch(job, disk.target)
            homes[disk.target] = job.host.unfreeze(job.uuid, disk.target, own, disk.from_, watch, job.saved)
            job.facts.home[disk.target] = True
        return homes

    def found(self, job: Job) -> bool:
        saved = job.host.saved(job.uuid, job.saved)
        if saved:
            note_saved(job)
        return saved


class CopyLast(Step):
    """Bring the last overlays to the destination, and to another host the memory with them; nothing writes any more."""

    says = "copying the last changes"
    undone_last = True

    def do(self, job: Job) -> None:
        """Copy the disks as they were when the guest stopped.

        Raises VmChanged, ChainChanged if somebody has started the VM or changed its disks since.
        """
        keep_known(job)
        still_saved(job)
        prove(job, rounds(job), memory=job.saved)
        with phase(job, "copy last") as moved:
            moved.append(bring(job, _last(job), job.plan.disks[0].target, hurry=True))
            for disk in job.frozen_disks:
                prove_files(job, disk, rounds(job))

    def undo(self, job: Job) -> None:
        for file in _last(job):
            drop(job, file)


class FoldLast(Step):
    """Write the last changes into the copies: from here on each disk is one image again, and the guest starts on that.

    There is nothing to put back: the copies are dropped with the base.
    """

    says = "folding the last changes into the copies"

    def do(self, job: Job) -> None:
        with phase(job, "fold last"):
            fold(job, last_overlays(job))
        for disk in _marked(job):
            job.facts.copy[disk.target] = job.facts.unwritten[disk.active.destination]


class Restore(Step):
    """Load the saved state from the destination, the guest still standing."""

    says = "restoring the guest from the destination"

    def do(self, job: Job) -> None:
        """Load the saved state, unless somebody has started the VM from the copies: then it is of no use any more.

        Raises VmChanged where the VM runs from other images than the copies.
        """
        keep_known(job)
        with phase(job, "restore"):
            try:
                if not overtaken(job):
                    self._load(job)
            except VmferryError:
                if not overtaken(job):
                    raise
        if not self._from_copies(job):
            raise _started(job)

    def _load(self, job: Job) -> None:
        """Load the saved state on the copies. Raises VmChanged if they were written to since a load was begun.

        Once it was begun, a QEMU of the job's own may have written to the copies' headers too.
        """
        if job.facts.loading and _copies_written(job):
            raise _started(job)
        images = {**final_images(job), **_put_on_copies(job)}
        job.facts.loading = True
        load(job, job.there, images)

    def _from_copies(self, job: Job) -> bool:
        """Tell whether the VM runs from the copies, or is off: then it ended, as Resume finds."""
        return _on_copies(job) or job.there.power(job.uuid) is Power.OFF

    def undo(self, job: Job) -> None:
        job.there.unload(job.uuid)

    def found(self, job: Job) -> bool:
        return job.there.power(job.uuid) is not Power.OFF and _on_copies(job)

    def overtaken(self, job: Job) -> bool:
        return overtaken(job)


class Resume(Step):
    """Let the guest run from the destination. From here a job only goes forward."""

    says = "resuming the guest"

    def do(self, job: Job) -> None:
        if job.there.power(job.uuid) is Power.OFF and not self.crossed(job):
            raise GuestGone(vm=job.plan.vm)  # it never ran here: its saved state is still good at the source
        pause_s = job.there.release(job.uuid, job.memory, run=bool(job.facts.ran))
        job.facts.pause_s = round(stood_s(job, pause_s), 4)

    def found(self, job: Job) -> bool:
        standing = job.there.power(job.uuid) is Power.PAUSED and bool(job.facts.ran)
        return job.there.spent(job.memory) and not standing

    def crossed(self, job: Job) -> bool:
        return job.there.spent(job.memory) or overtaken(job)


def note_saved(job: Job) -> None:
    """Record the last overlays' change stamps, which show later whether somebody has started the VM since the save."""
    for disk in job.frozen_disks:
        job.facts.saved[disk.target] = job.host.mark_of(job.overlay(disk, rounds(job)))


def keep_known(job: Job) -> None:
    """Define a VM again that somebody undefined while its memory is saved, until the source gives it up.

    A VM that runs survives being undefined; so does, by this, one whose memory is saved, until it runs again.
    """
    given_up = job.facts.definition is not None
    if given_up or known(job.host, job.uuid) or not job.host.saved(job.uuid, job.saved):
        return
    job.facts.undefined = True
    job.host.define_saved(job.uuid, job.saved)


def still_saved(job: Job) -> None:
    """Raise VmChanged or ChainChanged unless the VM is off at the source, its disks as they were when it stopped."""
    marks = {job.overlay(disk, rounds(job)): job.facts.saved[disk.target] for disk in job.frozen_disks}
    if power_of(job.host, job.uuid) is not Power.OFF or _written(job.host, marks):
        raise _started(job)
    nothing_put_on(job)


def nothing_put_on(job: Job) -> None:
    """Raise ChainChanged if somebody took a snapshot of the VM while off: it lies on overlays that will be gone."""
    for disk in job.frozen_disks:
        own = overlays(job, disk)
        named = job.host.active_image(job.uuid, disk.target)
        if named in own:
            continue
        found = disk_now(job, job.host, disk)
        if found is not None and any(image.path in own for image in found.chain):
            raise ChainChanged(
                vm=job.plan.vm,
                change=f"disk {disk.target} lies on {named} in its definition, which somebody put on top",
            )


def overtaken(job: Job) -> bool:
    """Tell whether somebody has started the VM from the copies, which its definition names by now.

    What it wrote then is nowhere else: there is no way back. False for another host, which has only a placeholder until
    the VM runs there.
    """
    if job.plan.relocates:
        return False
    power = job.there.power(job.uuid)
    off = power is Power.OFF and not job.facts.loading
    return (power is Power.RUNNING or (off and _copies_written(job))) and _on_copies(job)


def _on_copies(job: Job) -> bool:
    return all(on_copy(job, job.there, disk) is not False for disk in job.plan.disks)


def _put_on_copies(job: Job) -> dict[str, Placed]:
    """Return, by target, snapshots that somebody took of the VM while it was off and its definition named the copies.

    The VM is loaded on those.
    """
    if job.plan.relocates:
        return {}
    put = {}
    for disk in job.plan.disks:
        if job.there.active_image(job.uuid, disk.target) == disk.active.destination or not on_copy(
            job, job.there, disk
        ):
            continue
        if (found := disk_now(job, job.there, disk)) is not None:
            put[disk.target] = Placed(found.active.path, found.active.format)
    return put


def _copies_written(job: Job) -> bool:
    marks = {file_of(disk.active.destination): job.facts.copy[disk.target] for disk in _marked(job)}
    return _written(job.there, marks)


def _started(job: Job) -> VmChanged:
    return VmChanged(vm=job.plan.vm, change="somebody started it while its memory was saved")


def _marked(job: Job) -> list[DiskMove]:
    """Return the disks of whose copies a file system on this host tells when they were written."""
    return [disk for disk in job.frozen_disks if not disk.active.to_volume and not job.plan.relocates]


def _written(host: Host, marks: Mapping[Path, object]) -> bool:
    return any(mark is not None and host.mark_of(path) != mark for path, mark in marks.items())


def saved_memory(job: Job) -> ClosedFile:
    """Return the saved state as a file on its way to another host."""
    return ClosedFile(job.saved, job.memory, grows=True)


def _last(job: Job) -> list[ClosedFile]:
    memory = [saved_memory(job)] if job.plan.relocates else []
    return last_overlays(job) + memory


def first_images(job: Job) -> dict[str, Placed]:
    """Return, by target, what each moving disk runs on at the source once it is frozen."""
    return {
        disk.target: Placed(job.overlay(disk, rounds(job)), "qcow2") if disk.frozen else disk.from_
        for disk in job.plan.disks
    }


def final_images(job: Job) -> dict[str, Placed]:
    """Return, by target, what each moving disk runs on at the destination."""
    return {disk.target: disk.to for disk in job.plan.disks}


def note_standing(job: Job) -> None:
    """Record since when the guest stands, by this process's clock: the two hosts' clocks may differ."""
    job.facts.stands_since = time.time() - job.host.standing_s(job.uuid)


def stood_s(job: Job, otherwise: float) -> float:
    """Seconds that the guest stood, now that it runs again; `otherwise`, one host's measure, if that saw all of it."""
    since = job.facts.stands_since
    return max(0.0, time.time() - since) if since is not None else otherwise


def on_final_images(job: Job) -> bool:
    return all(job.there.active_image(job.uuid, t) == image.path for t, image in final_images(job).items())
