"""Proof that the guest can be started again: before its memory leaves QEMU, and waited for when it has to go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmferry.errors import CannotStart, HostRefused, StartNeeds
from vmferry.hosts.interface import Host
from vmferry.migration.steps.step import Job
from vmferry.model import Changes, Definition, Lack, Placed


def prove_start(job: Job) -> None:
    """Raise CannotStart unless libvirt could start the guest again where it is and where it goes to.

    Nothing is done yet. Things vanish while a job copies for hours. Where the guest is, a disc that is gone is no
    obstacle to a move to another host: to come back, it is taken out of its drive.
    """
    here = job.host.lacks_to_start(job.uuid)
    if not job.plan.relocates:
        _refuse(job, job.host, here)
        return
    _refuse(job, job.host, [lack for lack in here if not lack.drive])
    now = job.host.definition_now(job.uuid)
    _refuse(job, job.there, job.there.lacks(now, Changes(files=job.paths(), networks=job.plan.networks)))


def prove_definition(job: Job, definition: Definition, *, cold: bool) -> None:
    """Raise CannotStart unless the destination has all that the definition names which is about to be handed over.

    It may have been changed since the start was proved: a disk was attached to a VM whose memory is saved. What is gone
    on both hosts is no obstacle.
    """
    gone = {lack.what for lack in job.host.lacks(definition, Changes())}
    disks = {disk.target: disk.to for disk in job.plan.disks}
    changes = Changes(disks, job.paths(), job.plan.networks, job.plan.media, cold)
    _refuse(job, job.there, [lack for lack in job.there.lacks(definition, changes) if lack.what not in gone])


def load(job: Job, host: Host, images: Mapping[str, Placed]) -> None:
    """Load the saved state at `host`, and note the discs that had to be taken out of their drives for that."""
    ejected = host.restore(job.uuid, job.memory, job.changes(images))
    note_ejected(job, ejected)


def load_home(job: Job, images: Mapping[str, Placed]) -> None:
    """Load the saved state at the source. Raises StartNeeds while something is missing there: the job waits for it."""
    try:
        note_ejected(job, job.host.restore(job.uuid, job.saved, Changes(images)))
    except HostRefused:
        if lacks := job.host.lacks_to_load(job.uuid, job.saved, Changes(images)):
            fields = {"what": _named(lacks), "cure": _cures(lacks), "path": job.saved}
            raise StartNeeds(host=job.host.name, vm=job.plan.vm, **fields) from None
        raise


def note_ejected(job: Job, discs: Sequence[str]) -> None:
    if discs:
        job.facts.ejected = list(discs)


def _refuse(job: Job, host: Host, lacks: Sequence[Lack]) -> None:
    if lacks:
        raise CannotStart(host=host.name, vm=job.plan.vm, what=_named(lacks), cure=_cures(lacks))


def _named(lacks: Sequence[Lack]) -> str:
    return ", ".join(lack.what for lack in lacks)


def _cures(lacks: Sequence[Lack]) -> str:
    return "; ".join(dict.fromkeys(lack.cure for lack in lacks))
