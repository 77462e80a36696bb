"""Quick cut-over: saved state, the last overlay, and the VM again from the destination."""

from __future__ import annotations

import time

from vmferry.errors import GuestGone
from vmferry.model import Changes, Placed, Power
from vmferry.steps.ahead import Ahead, save_rate
from vmferry.steps.base import Job, Step
from vmferry.steps.bringing import Closed, bring, drop
from vmferry.steps.freeze import last_overlays, rounds
from vmferry.steps.progress import DeskWatch, phase


class Save(Step):
    """Put the VM into saved state; its memory is written while the guest still runs."""

    says = "saving the guest's memory"

    def do(self, job: Job) -> None:
        power = job.host.power(job.uuid)
        if power is Power.OFF:
            raise GuestGone(vm=job.plan.vm)
        if job.facts.get("ran") is None:
            job.facts.put("ran", power is Power.RUNNING)
        with phase(job, "save memory") as moved:
            self._save(job)
            moved.append(job.host.allocated(job.saved))
        if job.plan.relocates:
            note_standing(job)

    def _save(self, job: Job) -> None:
        """What was brought over of another saved state, by an attempt that was cut off, goes first."""
        watch = DeskWatch(job, job.plan.disks[0].target)
        if job.plan.relocates:
            drop(job, saved_memory(job))
            watch = Ahead(job, saved_memory(job))
        job.host.save(job.uuid, job.saved, watch, save_rate(job))

    def undo(self, job: Job) -> None:
        """Bring the guest back where it was, from its saved state, which is then spent."""
        ran = bool(job.facts.get("ran"))
        if job.host.saved(job.uuid, job.saved) and not job.host.spent(job.saved):
            job.host.restore(job.uuid, job.saved, Changes(first_images(job)))
        if job.host.power(job.uuid) is Power.PAUSED:
            if job.host.exists(job.saved):
                job.host.release(job.uuid, job.saved, run=ran)
            elif ran:
                job.host.resume(job.uuid)
        job.host.remove(job.saved)
        if job.plan.relocates:
            drop(job, saved_memory(job))

    def found(self, job: Job) -> bool:
        return job.host.saved(job.uuid, job.saved)


class CopyLast(Step):
    """Bring the last overlays to the destination, and to another host the memory with them; nothing writes any more."""

    says = "copying the last changes"

    def do(self, job: Job) -> None:
        with phase(job, "copy last") as moved:
            moved.append(bring(job, _last(job), job.plan.disks[0].target, hurry=True))

    def undo(self, job: Job) -> None:
        for file in _last(job):
            drop(job, file)


class Restore(Step):
    """Load the saved state from the destination, the guest still standing."""

    says = "restoring the guest from the destination"

    def do(self, job: Job) -> None:
        with phase(job, "restore"):
            job.there.restore(job.uuid, job.memory, job.changes(last_images(job)))

    def undo(self, job: Job) -> None:
        job.there.unload(job.uuid)

    def found(self, job: Job) -> bool:
        return job.there.power(job.uuid) is not Power.OFF and on_last_images(job)


class Resume(Step):
    """Let the guest run from the destination. From here a job only goes forward."""

    says = "letting the guest run"

    def do(self, job: Job) -> None:
        if job.there.power(job.uuid) is Power.OFF and not job.there.spent(job.memory):
            raise GuestGone(vm=job.plan.vm)  # it never ran here: its saved state is still good at the source
        pause_s = job.there.release(job.uuid, job.memory, run=bool(job.facts.get("ran")))
        job.facts.put("pause_s", round(stood_s(job, pause_s), 4))

    def found(self, job: Job) -> bool:
        standing = job.there.power(job.uuid) is Power.PAUSED and bool(job.facts.get("ran"))
        return self.crossed(job) and not standing

    def crossed(self, job: Job) -> bool:
        return job.there.spent(job.memory)


def saved_memory(job: Job) -> Closed:
    """The saved state, on its way to another host."""
    return Closed(job.saved, job.memory, grows=True)


def _last(job: Job) -> list[Closed]:
    memory = [saved_memory(job)] if job.plan.relocates else []
    return last_overlays(job) + memory


def first_images(job: Job) -> dict[str, Placed]:
    """What each moving disk runs on at the source, once frozen."""
    return {
        disk.target: Placed(job.overlay(disk, rounds(job)), "qcow2") if disk.frozen else disk.from_
        for disk in job.plan.disks
    }


def last_images(job: Job) -> dict[str, Placed]:
    """What each moving disk runs on at the destination, until it is merged."""
    return {
        disk.target: Placed(job.overlay_copy(disk, rounds(job)), "qcow2") if disk.frozen else disk.to
        for disk in job.plan.disks
    }


def note_standing(job: Job) -> None:
    """Since when the guest stands, by this process's clock: the two hosts' clocks may differ."""
    job.facts.put("stands_since", time.time() - job.host.standing_s(job.uuid))


def stood_s(job: Job, otherwise: float) -> float:
    """How long it stood, now that it runs again; where one host saw all of it, as that one says."""
    since = job.facts.get("stands_since")
    return max(0.0, time.time() - since) if isinstance(since, float) else otherwise


def on_last_images(job: Job) -> bool:
    return all(job.there.active_image(job.uuid, t) == image.path for t, image in last_images(job).items())
