"""Checks, before each act that relies on it, that the VM's disks still lie on what the job made."""

from __future__ import annotations

from pathlib import Path

from vmferry.errors import ChainChanged, NoSuchVm, RunWithout, StillNamed
from vmferry.hosts.interface import Host
from vmferry.migration.steps.source_files import note_inode, prove_files
from vmferry.migration.steps.step import Job, added, overlays, part_of, rounds
from vmferry.model import Disk, DiskMove, Leaving, Lost, UserKind, Where
from vmferry.model.chains import DiskChain, Expected, Layer, differences


def overlays_that_stay(job: Job, *, moved: bool) -> frozenset[Path]:
    """Return the job's overlays at the source that somebody needs, with those below them, and note them.

    Who asked libvirt for the VM's image while it was frozen was told of an overlay. `moved`: the VM runs, or would
    start, from the destination; else it is back on what lay below the overlays, and only other files are asked about.
    """
    if job.lost is Lost.SOURCE:
        return frozenset()
    chains = [[path for path in overlays(job, disk) if job.host.exists(path)] for disk in job.frozen_disks]
    own = {overlay: chain for chain in chains for overlay in chain}
    if not own:
        return frozenset()
    users = [user for user in job.ask(job.host, list(own), near(job, *own)) if moved or user.kind is UserKind.IMAGE]
    needed = Leaving(job.uuid, frozenset(), frozenset(), own=own_images(job, job.host), moved=moved)
    stay = {
        below
        for overlay, chain in own.items()
        if needed.others([user for user in users if user.file == overlay])
        for below in chain[chain.index(overlay) :]
    }
    if stay:
        job.facts.stayed = added(job.facts.stayed, sorted(stay))
    return frozenset(stay)


def own_images(job: Job, host: Host) -> frozenset[Path]:
    """Return the paths of all images that the job makes on that host, by its own names and with its folders' links."""
    made: list[Path] = []
    if host.name == job.host.name:
        made += [overlay for disk in job.frozen_disks for overlay in overlays(job, disk)]
    if host.name == job.there.name:
        copies = [job.overlay_copy(disk, n) for disk in job.frozen_disks for n in range(rounds(job) + 1)]
        made += [*copies, *map(part_of, copies)]
        made += [job.part(image) for image in job.plan.images if not image.to_volume]
    real = {folder: host.folder(folder).real for folder in {path.parent for path in made}}
    return frozenset({*made, *((real[path.parent] or path.parent) / path.name for path in made)})


def unneeded(host: Host, path: Path) -> None:
    """Raise StillNamed if a VM's disk names the file, which is about to be taken away."""
    if users := host.users(path):
        names = ", ".join(host.vm(user).name for user in users)
        raise StillNamed(host=host.name, path=path, users=names)


def near(job: Job, *files: Path) -> list[Path]:
    """Return where images may lie that need these files: their folders, and on one host those that are gone to."""
    theirs = () if job.plan.relocates else (path.parent for path in job.paths().values())
    return sorted({*(file.parent for file in files), *theirs})


def sources(job: Job) -> dict[str, list[Where]]:
    """Return, by disk target, all images that the job may have made the VM's definition at the source name.

    Any other image that the definition names was chosen by a person. Paths on another host are not listed: the agent at
    the source refuses what lies in no storage of its own.
    """
    places: dict[str, list[Where]] = {}
    for disk in job.plan.disks:
        places[disk.target] = [disk.active.source, *(overlays(job, disk) if disk.frozen else [])]
        places[disk.target] += [] if job.plan.relocates else [disk.active.destination]
    return places


def note(job: Job) -> None:
    """Record what each moving disk lies on, before the job touches it."""
    moving = {disk.target for disk in job.plan.disks}
    for source in job.plan.sources:
        if isinstance(source.path, Path):
            note_inode(job, source.path)
    for chain in job.host.chains(job.uuid) or ():
        if chain.target in moving:
            job.facts.named[chain.target] = list(chain.named)
            job.facts.layers[chain.target] = [_dump(layer) for layer in chain.layers]


def note_run(job: Job) -> None:
    """Record which QEMU has the overlays open."""
    job.facts.run = job.host.run_of(job.uuid)


def run_anew(job: Job) -> bool:
    """Tell whether the VM runs in another QEMU than the one that had the overlays; False where that is not known."""
    noted, now = (job.facts.run or "").split(), job.host.run_of(job.uuid).split()
    return bool(noted and now) and not set(noted) & set(now)


def prove(job: Job, round_: int | None, *, mirrored: bool = False, memory: Path | None = None) -> None:
    """Raise ChainChanged unless each disk is on the overlay of this round and on all that lay below it.

    `round_` None: on what it lay on before the job. A VM that is off is not looked at. `mirrored`: the job's own
    mirrors may run, and a disk that already runs from the destination is passed by. `memory`: what the VM lay on when
    it was put into this saved state is examined.
    """
    if mirrored:
        before = _chains(job, memory)
        if before is None:
            return
        disks = [disk for disk in job.plan.disks if not _over(job, disk, before)]
    else:
        disks = list(job.plan.disks)
    for disk in disks:
        prove_files(job, disk, round_)
    found = _chains(job, memory)  # last: whatever is asked after it is an instant in which they may change
    if found is None:
        return
    disks = [disk for disk in disks if not (mirrored and _over(job, disk, found))]
    wanted = [each for disk in disks if (each := _expected(job, disk, round_, mirrored=mirrored)) is not None]
    if changed := differences(wanted, list(found.values())):
        if run_anew(job):
            raise RunWithout(vm=job.plan.vm)
        raise ChainChanged(vm=job.plan.vm, change=" and ".join(difference.says for difference in changed))


def _chains(job: Job, memory: Path | None) -> dict[str, DiskChain] | None:
    """Return what the VM's disks lie on, by target; None for a VM that is off, or not known."""
    try:
        found = job.host.chains(job.uuid, memory)
    except NoSuchVm:
        return None
    return None if found is None else {chain.target: chain for chain in found}


def heed(job: Job) -> None:
    """Raise ChainChanged unless the disks are on the newest round's overlays or have arrived at the destination.

    Called when a disk is found on no overlay of the job's.
    """
    prove(job, rounds(job), mirrored=True)


def on_copy(job: Job, host: Host, disk: DiskMove) -> bool | None:
    """Tell whether the disk runs, or starts, from the destination, also below an image that somebody put on it since.

    Returns None if the VM no longer has the disk.
    """
    active = host.active_image(job.uuid, disk.target)
    if active == disk.active.destination:
        return True
    if active == disk.active.source or active in overlays(job, disk):
        return False
    found = disk_now(job, host, disk)
    if found is None:
        return None
    copies = {image.destination for image in disk.images}
    return any(image.path in copies for image in found.chain)


def disk_now(job: Job, host: Host, disk: DiskMove) -> Disk | None:
    """Return a moving disk as the host has it now, with its whole chain; None if the VM no longer has it."""
    return next((each for each in host.vm(job.uuid).disks if each.target == disk.target), None)


def _over(job: Job, disk: DiskMove, there: dict[str, DiskChain]) -> bool:
    """Tell whether a disk runs from the destination; False for another host, where files may have the same paths."""
    chain = None if job.plan.relocates else there.get(disk.target)
    return chain is not None and any(str(image.destination) in chain.named for image in disk.images)


def _expected(job: Job, disk: DiskMove, round_: int | None, *, mirrored: bool) -> Expected | None:
    """Return the chain that a disk must have; None if none was recorded, since an earlier version began the job."""
    named, layers = job.facts.named[disk.target], job.facts.layers[disk.target]
    if named is None or layers is None:
        return None
    own = overlays(job, disk, round_) if disk.frozen and round_ is not None else []
    return Expected(
        target=disk.target,
        overlays=tuple(map(str, own)),
        below=tuple(named),
        layers=tuple(map(_load, layers)),
        mirror=str(disk.active.destination) if mirrored else "",
    )


def _dump(layer: Layer) -> str:
    return f"{layer.virtual_bytes} {layer.format} {layer.name}"


def _load(text: str) -> Layer:
    size, format_, name = text.split(" ", 2)
    return Layer(name, format_, int(size))
