"""The last step: the source is removed or kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vmferry.errors import NotSeenRunning
from vmferry.hosts.records import Fold
from vmferry.migration.steps import pools
from vmferry.migration.steps.chains import near, overlays_that_stay, own_images
from vmferry.migration.steps.copying import prove_copies
from vmferry.migration.steps.relocation import forget_carried, written
from vmferry.migration.steps.source_files import is_other
from vmferry.migration.steps.step import Job, Step, added, file_of, overlays
from vmferry.model import Changes, Fate, ImageMove, Leaving, Lost, Placed, SourceFileFate, Where, listed
from vmferry.model.names import beside
from vmferry.model.outcomes import dumped


class Retire(Step):
    """Remove the source, or keep it under a dated name, once the VM has been seen at the destination.

    Before each file goes, its users are looked for once more: a file that has got a user since the plan was made stays.
    """

    says = "removing or keeping the source"

    def do(self, job: Job) -> None:
        if not job.facts.seen:
            raise NotSeenRunning(vm=job.plan.vm, path=job.plan.disks[0].active.destination)
        prove_copies(job, f"the source is kept; put it back, then `vmferry job retry {job.id}`", used=True)
        job.there.remove(job.memory)
        if job.plan.relocates:
            job.host.withdraw(job.uuid)
            job.host.end_serving()
            job.there.end_serving()
            job.host.remove(job.saved)
        keep = job.plan.keep_source and job.lost is not Lost.SOURCE
        staying = overlays_that_stay(job, moved=True)
        if keep:
            staying |= _without_base(job)
        _remove_overlays(job, staying, merged=keep)
        if keep:
            self._keep(job, staying)
        elif not job.plan.keep_source:
            self._remove(job, staying)
        if job.plan.relocates and not job.plan.keep_source:
            job.host.clear_out(job.uuid)
        self._forget(job)
        pools.refresh(job)

    def _remove(self, job: Job, staying: frozenset[Path]) -> None:
        for source in _going(job):
            if not job.host.exists(_data(source)):  # removed before we were cut off
                _remove_links(job, source)
            elif _asked(job, source, staying).goes:
                entry = job.host.entry(_data(source))
                freed = entry.bytes if entry is not None and entry.names == 1 else 0
                _note(job, replace(source, freed_bytes=freed))
                job.host.remove(_data(source))
                _remove_links(job, source)

    def _keep(self, job: Job, staying: frozenset[Path]) -> None:
        """Give the images dated names, bases first."""
        dated = {source.path: self._kept(job, _data(source)) for source in _going(job)}
        going: dict[Where, SourceFileFate] = {}
        for source in _going(job):  # a base goes only with all that lies on it
            own = {name for above in going.values() for name in above.names}
            if _asked(job, source, staying, own.union(source.names, dated.values())).goes:
                going[source.path] = source
        names = {path: dated[path] for path in going if isinstance(path, Path)}
        for image in job.plan.images:
            if image.source not in going:
                continue
            below = _backing_of(job, image)
            backing = names.get(below) if isinstance(below, Path) else None
            self._rename(job, going[image.source], kept := names[_file(image)])
            if backing is not None:
                job.host.rebase(kept, Placed(backing, image.backing_format or "raw"))
        kept_files = [str(names[image.source]) for image in job.plan.images if image.source in names]
        job.facts.kept = kept_files + self._keep_definition(job, names)

    def _rename(self, job: Job, source: SourceFileFate, kept: Path) -> None:
        if job.host.exists(_data(source)):
            job.host.rename(_data(source), kept)
        _remove_links(job, source)

    def _keep_definition(self, job: Job, names: Mapping[Path, Path]) -> list[str]:
        """Write a file from which a host that has forgotten the VM can define it on the kept images. Returns its path.

        Empty where the VM stays on its host.
        """
        definition = written(job)
        if definition is None or not job.plan.relocates:
            return []
        disks = {disk.target: disk.from_ for disk in job.frozen_disks}
        for disk in job.plan.disks:
            if not disk.active.from_volume and (kept := names.get(_file(disk.active))):
                disks[disk.target] = disk.from_._replace(path=kept)
        folder = next(iter(names.values()), job.saved).parent
        xml = self._kept(job, folder / f"{job.plan.vm.replace('/', '_')}.xml")
        job.host.keep_definition(definition, Changes(disks), xml)
        return [str(xml)]

    def _kept(self, job: Job, source: Path) -> Path:
        day = job.facts.kept_day
        if day is None:
            day = datetime.now(UTC).strftime("%Y%m%d")
            job.facts.kept_day = day
        return beside(source, f".kept-{day}-{job.id}")

    def _forget(self, job: Job) -> None:
        for image in job.plan.images:
            job.there.forget(job.closed(job.base_transfer(image)))
        if job.plan.relocates:
            forget_carried(job)


def _remove_overlays(job: Job, staying: frozenset[Path], *, merged: bool) -> None:
    """Remove the job's overlays at the source; `merged`: into what they lay on, a way back as of the cut-over."""
    for disk in job.frozen_disks:
        own = overlays(job, disk)
        if merged and staying.isdisjoint(own):
            job.host.fold([Fold(own[0], disk.from_)])
        for overlay in own:
            if overlay not in staying and not is_other(job, overlay):
                job.host.remove(overlay)


def _going(job: Job) -> Iterator[SourceFileFate]:
    """Yield the files that the plan takes away at the source, those that lie on others first."""
    yield from (source for source in job.plan.sources if source.goes)


def _asked(job: Job, source: SourceFileFate, staying: frozenset[Path], own: Collection[Where] = ()) -> SourceFileFate:
    """Return a source file's fate as it is now, and note it: it may have got a user, or its link may lead elsewhere.

    `staying`: overlays of the job that others need. `own`: files that need it and go with it, or have gone to where
    they need it no longer.
    """
    fate = source
    if job.lost is not Lost.SOURCE and (why := _why_it_stays(job, source, staying, own)):
        fate = replace(source, fate=Fate.STAYS, why=why)
    _note(job, fate)
    return fate


def _why_it_stays(job: Job, source: SourceFileFate, staying: frozenset[Path], own: Collection[Where]) -> str:
    entry, data = job.host.entry(file_of(source.path)), _data(source)
    if entry is not None and entry.path != data:
        return f"it leads to {entry.path} now"
    gone = own_images(job, job.host) - staying
    if is_other(job, file_of(source.path)):
        return "another file than was copied has its name now"
    leaving = Leaving(job.uuid, frozenset(), frozenset(own), own=gone, moved=True)
    others = leaving.others(job.ask(job.host, [data], near(job, data)))
    return f"needed by {listed(others)}" if others else ""


def _without_base(job: Job) -> frozenset[Path]:
    """Return the overlays that cannot be merged into what they lay on, since another file has its path, and note them.

    With the image that they lay on, wherever that is now, they are the way back.
    """
    kept: list[Path] = []
    for disk in job.frozen_disks:
        own = [overlay for overlay in overlays(job, disk) if job.host.exists(overlay)]
        below = [image.source for image in disk.images if isinstance(image.source, Path)]
        if any(is_other(job, path) for path in (*own, *below)):
            kept += own
    if kept:
        job.facts.stayed = added(job.facts.stayed, kept)
    return frozenset(kept)


def _note(job: Job, source: SourceFileFate) -> None:
    job.facts.outcome[source.path] = dumped(source)


def _remove_links(job: Job, source: SourceFileFate) -> None:
    """Remove the links that led to a file that has gone; a link of a folder is none of them."""
    for link in source.links:
        if job.host.entry(link) is None and job.host.exists(link):
            job.host.remove(link)


def _data(source: SourceFileFate) -> Path:
    return source.data or file_of(source.path)


def _file(image: ImageMove) -> Path:
    return file_of(image.source)


def _backing_of(job: Job, image: ImageMove) -> Where | None:
    for disk in job.plan.disks:
        sources = [i.source for i in disk.images]
        if image.source in sources[:-1]:
            return sources[sources.index(image.source) + 1]
    return None
