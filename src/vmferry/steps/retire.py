"""The source, last of all."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from vmferry.errors import NotSeenRunning
from vmferry.model import Changes, ImageMove, Lost, Placed, Where
from vmferry.steps.base import Job, Step, file_of
from vmferry.steps.bringing import forget
from vmferry.steps.freeze import closed_overlay, rounds
from vmferry.steps.relocation import forget_carried, written


class Retire(Step):
    """Remove the source, or keep it under a dated name, once the VM has been seen at the destination."""

    says = "retiring the source"

    def do(self, job: Job) -> None:
        if job.facts.get("seen") is not True:
            raise NotSeenRunning(vm=job.plan.vm, path=job.plan.disks[0].active.destination)
        job.there.remove(job.memory)
        if job.plan.relocates:
            job.host.withdraw(job.uuid)
            job.host.end_serving()
            job.there.end_serving()
            job.host.remove(job.saved)
        if job.plan.keep_source and job.lost is not Lost.SOURCE:
            self._keep(job)
        self._remove(job)
        if job.plan.relocates and not job.plan.keep_source:
            job.host.clear_out(job.uuid)
        self._forget(job)

    def _keep(self, job: Job) -> None:
        """A way back as of the cut-over: fold the overlays in, then give the images dated names."""
        for disk in job.frozen_disks:
            job.host.fold(job.overlay(disk, rounds(job)), disk.from_)
            for round_ in range(rounds(job), -1, -1):
                job.host.remove(job.overlay(disk, round_))
        names = {source: self._kept(job, source) for source in map(_file, _owned(job))}
        for image in _owned(job):
            below = _backing_of(job, image)
            backing = names.get(below) if isinstance(below, Path) else None
            kept = names[_file(image)]
            if job.host.exists(_file(image)):
                job.host.rename(_file(image), kept)
            if backing is not None:
                job.host.rebase(kept, Placed(backing, image.backing_format or "raw"))
        kept_files = [str(path) for path in names.values()]
        job.facts.put("kept", kept_files + self._keep_definition(job, names))

    def _keep_definition(self, job: Job, names: Mapping[Path, Path]) -> list[str]:
        """On a host that has forgotten the VM: what to define it from, on the kept images."""
        definition = written(job)
        if definition is None or not job.plan.relocates:
            return []
        disks = {disk.target: disk.from_ for disk in job.frozen_disks}
        for disk in job.plan.disks:
            if not disk.active.from_volume and (kept := names.get(_file(disk.active))):
                disks[disk.target] = disk.from_._replace(path=kept)
        beside = next(iter(names.values()), job.saved).parent
        xml = self._kept(job, beside / f"{job.plan.vm.replace('/', '_')}.xml")
        job.host.keep_definition(definition, Changes(disks), xml)
        return [str(xml)]

    def _kept(self, job: Job, source: Path) -> Path:
        day = job.facts.get("kept_day")
        if not isinstance(day, str):
            day = datetime.now(UTC).strftime("%Y%m%d")
            job.facts.put("kept_day", day)
        return source.with_name(f"{source.name}.kept-{day}-{job.id}")

    def _remove(self, job: Job) -> None:
        for disk in job.frozen_disks:
            for round_ in range(rounds(job), -1, -1):
                job.host.remove(job.overlay(disk, round_))
        if not job.plan.keep_source:
            for image in reversed(_owned(job)):
                job.host.remove(_file(image))
            for file in job.plan.files:
                if not file.stays:
                    job.host.remove(file.source)

    def _forget(self, job: Job) -> None:
        for image in job.plan.images:
            job.there.forget(job.closed(job.base_transfer(image)))
        for disk in job.frozen_disks:
            for round_ in range(rounds(job) + 1):
                forget(job, closed_overlay(job, disk, round_))
        if job.plan.relocates:
            forget_carried(job)


def _owned(job: Job) -> list[ImageMove]:
    """Files that nobody else uses, bases first; a volume stays as it is, for whoever owns it to wipe."""
    return [image for image in job.plan.images if not image.shared and not image.from_volume]


def _file(image: ImageMove) -> Path:
    return file_of(image.source)


def _backing_of(job: Job, image: ImageMove) -> Where | None:
    for disk in job.plan.disks:
        sources = [i.source for i in disk.images]
        if image.source in sources[:-1]:
            return sources[sources.index(image.source) + 1]
    return None
