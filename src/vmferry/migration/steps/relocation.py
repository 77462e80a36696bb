"""What a move to another host adds: the VM's definition, its memory and the right to run it change hosts.

The right to run is a single token. The source gives it up first (`Relinquish`), durably; only then the
destination may take it, by releasing the saved state or the guest that arrived standing. To go back the
destination has to give it up first: as long as it does not answer, nobody runs the VM.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from vmferry.errors import ChainChanged, GuestGone, HostRefused, NoSuchVm, SourceChanged, VmChanged, VmferryError
from vmferry.migration.steps.chains import prove, sources
from vmferry.migration.steps.checkpoints import prove_none_taken
from vmferry.migration.steps.closed_files import forget
from vmferry.migration.steps.copying import START_AGAIN, prove_copies, writing
from vmferry.migration.steps.progress import ControlWatch, phase
from vmferry.migration.steps.proof import prove_definition, prove_start
from vmferry.migration.steps.saved_state import final_images, first_images, keep_known, saved_memory, still_saved
from vmferry.migration.steps.step import Job, Step, file_of, power_of, rounds
from vmferry.model import MIRRORS, SAVES, Definition, Lost, Power, Technology

PROVE_S = 0.25


ATTEMPTS = 3
"""What was away for a moment may go once more as it comes back."""


class Announce(Step):
    """Show the VM at the destination as a placeholder, which takes no memory and cannot start."""

    says = "announcing the VM at the destination"
    undone_last = True

    def do(self, job: Job) -> None:
        job.there.announce(job.host.definition(job.uuid))

    def undo(self, job: Job) -> None:
        job.there.withdraw(job.uuid)

    def found(self, job: Job) -> bool:
        return job.there.announced(job.uuid)


class Relinquish(Step):
    """Make it impossible that the source starts the VM by itself."""

    says = "releasing the VM at the source"

    def do(self, job: Job) -> None:
        """Record the VM's definition, then make the source unable to start the VM by itself.

        Raises ChainChanged, CannotStart for what somebody has changed meanwhile.
        The definition is read once: an attempt that was cut off may have forgotten its snapshots already. A VM that
        somebody has undefined meanwhile is defined as it runs, or as it was saved, for the time of the move alone.
        """
        fresh = written(job) is None
        if job.plan.technology in SAVES:
            keep_known(job)
            if fresh or job.host.defined(job.uuid):
                still_saved(job)  # asked again of what can still be started there
        if fresh:
            prove_definition(job, job.host.definition(job.uuid), cold=job.plan.technology is Technology.LAN)
            job.facts.noted_snapshots = list(_snapshots(job))
            job.facts.definition = self._definition(job).dump()
        elif taken := set(_snapshots(job)) - set(job.facts.noted_snapshots or ()):
            # it would be forgotten with the others
            raise ChainChanged(vm=job.plan.vm, change=f"the snapshot {', '.join(sorted(taken))} was taken")
        job.host.relinquish(job.uuid, runs=job.plan.technology in MIRRORS)

    def _definition(self, job: Job) -> Definition:
        """Return the VM's definition at the source.

        Disks for whose next start a person chose another image are noted: that image is not at the other host. So is
        that somebody undefined the VM.
        """
        frozen = job.facts.frozen
        named = first_images(job) if frozen else {disk.target: disk.from_ for disk in job.plan.disks}
        chosen = job.host.point(job.uuid, named, {}, sources(job))
        job.facts.next_start = list(chosen)
        definition = job.host.definition(job.uuid)
        if not job.host.defined(job.uuid):
            job.facts.undefined = True
        return definition

    def undo(self, job: Job) -> None:
        """Give the VM back to the source, only after the destination can never run it."""
        job.there.void(job.memory)
        definition = written(job)
        if definition is not None:
            job.host.reclaim(definition)
            if job.facts.frozen:
                job.host.point(job.uuid, first_images(job), {}, sources(job))


def _snapshots(job: Job) -> Sequence[str]:
    """Return the names of the VM's snapshots that libvirt at the source knows; none of a VM that it does not know."""
    try:
        return job.host.vm(job.uuid).snapshots
    except NoSuchVm:
        return ()


class StillOff(Step):
    """A VM that was off must have stayed so while it was copied."""

    says = "checking that the VM has not been started or changed"

    def do(self, job: Job) -> None:
        if power_of(job.host, job.uuid) is not Power.OFF:
            raise VmChanged(vm=job.plan.vm, change="it was started while it was copied")
        for image in job.plan.images:
            if not image.from_volume and job.host.mark_of(file_of(image.source)) != job.facts.mark[image.source]:
                raise SourceChanged(path=image.source)

    def found(self, job: Job) -> bool:
        """True where the source is lost: there is nothing to look at, the copy is all that is left."""
        return job.lost is Lost.SOURCE


class Migrate(Step):
    """Let libvirt carry memory and the last changes while the guest runs, then let it run there.

    The last changes go straight into the copies. What an attempt that was cut off has left there does no harm: see
    Mirror.

    The guest arrives standing, and `let_go` is recorded before it is resumed. Without that record it has never run at
    the destination, so that an end in doubt is decided for the source. With it the guest may have run there, and the
    destination's disks are the newer ones whatever became of it.
    """

    says = "migrating the guest to the other host"

    def do(self, job: Job) -> None:
        power = power_of(job.host, job.uuid)
        gone = power is Power.OFF and not self.crossed(job)
        if gone and job.lost is not Lost.SOURCE:
            raise GuestGone(vm=job.plan.vm)
        if job.facts.ran is None:
            job.facts.ran = power is Power.RUNNING
            prove_copies(job, START_AGAIN)
            prove_none_taken(job)
            writing(job)
        with phase(job, "migrate"):
            if power is not Power.OFF:
                self._carry(job)
            begun = time.monotonic()
            if not gone:
                self._let_go(job)
            job.facts.pause_s = round(_stood_s(job, begun), 4)

    def _carry(self, job: Job) -> None:
        """Migrate the guest, in up to ATTEMPTS attempts.

        Raises HostUnreachable where the destination is away for longer, HostRefused, CannotStart, ChainChanged. A host
        that was away for a moment costs the memory again, and not all that was copied.
        """
        changes = job.changes(final_images(job))
        for attempt in range(1, ATTEMPTS + 1):
            self._back(job)
            prove_start(job)  # what an attempt before has left there held its port and its huge pages
            to = job.there.receive(job.uuid)
            prove(job, rounds(job))
            try:
                job.host.migrate(job.uuid, to, changes, _Proving(job, job.plan.disks[0].target))
                return
            except HostRefused:
                job.there.arrived(job.uuid)  # libvirt at the source says the same, whatever became of the other end
                if attempt == ATTEMPTS or power_of(job.host, job.uuid) is Power.OFF:
                    raise

    def _let_go(self, job: Job) -> None:
        """Record that the guest may run at the destination, then resume it if it ran.

        The guest stands meanwhile: nothing is asked here that can be asked later. Raises GuestGone for one that ended
        before it was let run: the source has all that it wrote.
        """
        if not job.facts.let_go:
            if not self._arrived(job):
                raise GuestGone(vm=job.plan.vm)
            job.facts.let_go = True
        if job.facts.ran:
            with suppress(NoSuchVm):  # let run by an attempt before this one, and shut down since
                job.there.resume(job.uuid)

    def _arrived(self, job: Job) -> bool:
        """Tell whether the guest has arrived at the destination.

        It is asked again once libvirt at the source has answered: QEMU's end is seen before libvirt has told both sides
        of it.
        """
        if job.there.arrived(job.uuid):
            return True
        power_of(job.host, job.uuid)  # waits until libvirt has
        return job.there.arrived(job.uuid)

    def undo(self, job: Job) -> None:
        self._back(job)

    def _back(self, job: Job) -> None:
        """Remove what a cut-off attempt left at the destination, and resume the guest at the source if it ran."""
        job.there.end_serving()
        job.there.unload(job.uuid)
        if job.facts.ran and power_of(job.host, job.uuid) is Power.PAUSED:
            job.host.resume(job.uuid)

    def found(self, job: Job) -> bool:
        return self.crossed(job) and not (job.facts.ran and power_of(job.there, job.uuid) is Power.PAUSED)

    def crossed(self, job: Job) -> bool:
        if job.facts.let_go:
            return True
        return power_of(job.host, job.uuid) is Power.OFF and job.there.arrived(job.uuid)


class _Proving(ControlWatch):
    """Watch of a migration that proves the disks' chains every PROVE_S.

    Until libvirt is at work on the VM, somebody may have changed them.
    """

    def __init__(self, job: Job, target: str) -> None:
        super().__init__(job, target)
        self._proved = 0.0

    def check(self) -> None:
        super().check()
        if time.monotonic() - self._proved > PROVE_S:
            prove(self._job, rounds(self._job))
            self._proved = time.monotonic()


@dataclass(frozen=True)
class Arrive(Step):
    """Define the VM at the destination, in the placeholder's place, with all that was written down of it."""

    cold: bool = False
    """It is off, and has been all the time."""
    says = "defining the VM at the destination"

    def do(self, job: Job) -> None:
        definition = written(job)
        if definition is None:
            raise NoSuchVm(vm=job.plan.vm, host=job.plan.connect)
        changes = replace(job.changes(final_images(job)), files=job.paths(), cold=self.cold)
        job.there.adopt(definition, changes)

    def undo(self, job: Job) -> None:
        """Do nothing: it is undone only if it was cut off before it took effect."""

    def found(self, job: Job) -> bool:
        return self.crossed(job)

    def crossed(self, job: Job) -> bool:
        return job.there.defined(job.uuid) and not job.there.announced(job.uuid)


def _stood_s(job: Job, begun: float) -> float:
    """Seconds that the guest has stood until now; since `begun`, on the monotonic clock, if the source cannot tell."""
    ended = time.monotonic()
    stands = 0.0
    with suppress(VmferryError):  # whom the source does not answer now need not wait for it
        stands = job.host.standing_s(job.uuid)
    return stands - (time.monotonic() - ended) if stands > 0 else ended - begun


def written(job: Job) -> Definition | None:
    """Return the VM's definition as recorded when the source gave it up; None before."""
    text = job.facts.definition
    return None if text is None else Definition.load(text)


def forget_carried(job: Job) -> None:
    """Remove the bookmarks of what was carried beside the disks: the memory and the VM's other files."""
    forget(job, saved_memory(job))
    for file in job.plan.files:
        job.there.forget(job.closed(job.transfer(file.source, job.file_part(file))))
