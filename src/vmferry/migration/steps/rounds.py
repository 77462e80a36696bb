"""The rounds after the freeze: what the guest wrote meanwhile is copied and folded, until the rest is small enough."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vmferry.errors import NoSuchVm, VmUndefined
from vmferry.migration.forecast import CARRY_BYTES_S, DEFAULT_RATE_BYTES_S, pause_s
from vmferry.migration.steps.chains import note_run, prove
from vmferry.migration.steps.closed_files import ClosedFile, bring, drop, fold
from vmferry.migration.steps.progress import phase, spare_source
from vmferry.migration.steps.source_files import note_overlays, prove_files
from vmferry.migration.steps.step import Job, Step, rounds
from vmferry.model import MIRRORS, DiskMove, JobState, Technology

MOST_ROUNDS = 32
"""Each round makes the chain one image deeper; QEMU gets slow long before libvirt's limit of 200."""
SMALL_BYTES = 32 << 20
"""A live job mirrors what is below this without a further round."""
SHRINKS = 0.9
"""A round that leaves more than this part of the one before does not converge."""
GROWTH_S = 1.0
"""Between two looks at a guest: how much its overlay has grown."""
ROUND_FIXED_S = 0.5
"""A round's own time, however little there is to copy."""
LEAST_GROWTH_S = 0.5
"""What an overlay holds at first, its tables, says nothing of how fast it grows."""
SURE_BYTES = 256 << 20
"""A base smaller than this shows what a copy costs to begin, not what the storages can do."""
LITTLE_BYTES = 16 << 20
"""It shows a slow link all the same."""


def reached(job: Job) -> int:
    """Return the highest round in which the disks were seen: they do not go back to an earlier one by themselves."""
    return job.facts.reached


def folded(job: Job) -> int:
    """Return how many rounds have been folded into the copy at the destination."""
    return job.facts.folded


@dataclass(frozen=True)
class Rounds(Step):
    """Close the overlay, copy it and fold it into the copy, again and again, until the rest is small enough."""

    technology: Technology
    says = "copying what was written since"
    may_stand = True
    undone_last = True

    def do(self, job: Job) -> None:
        before = None
        while True:
            round_ = self._round(job)
            with phase(job, f"round {round_}") as moved:
                moved.append(self._fold_closed(job, round_))
            remaining = self._remaining(job, round_)
            _note_growth(job, remaining)
            stalls = before is not None and remaining > SHRINKS * before
            yields = stalls and job.control.throttle.gives_way
            if self._small(job, remaining, round_) or (stalls and not yields and self.technology in MIRRORS):
                # what no longer shrinks is the mirror's: it follows the guest
                job.facts.rounds = round_
                job.control.check()  # the last place to stand still before the cut-over
                return
            if yields:
                job.control.throttle.insists = True  # it is for giving way that the rounds do not shrink
            elif (stalls or round_ >= _most_rounds(job)) and not self._wait_for_calm(job, round_):
                continue
            before = remaining
            self._next_round(job, round_ + 1)

    def undo(self, job: Job) -> None:
        for disk in job.frozen_disks:
            for round_ in range(rounds(job) + 1):
                drop(job, closed_overlay(job, disk, round_))

    def _round(self, job: Job) -> int:
        """Return the active round and record it as reached.

        Raises VmUndefined, and ChainChanged where the active image is none of the job's.
        """
        try:
            round_ = job.round_of(job.frozen_disks[0])
        except NoSuchVm:
            raise VmUndefined(vm=job.plan.vm) from None
        if round_ is None or round_ not in (reached(job), rounds(job)):
            round_ = rounds(job)
        prove(job, round_)
        note_overlays(job, round_)
        note_run(job)
        job.facts.reached = round_
        return round_

    def _fold_closed(self, job: Job, active: int) -> int:
        """Fold all overlays below the active ones, oldest first, that are not in the copy yet. Returns the bytes moved.

        Each is compared before it is folded; the base was compared before the first. A round that was cut off is folded
        again, and no later one has been folded by then.
        """
        moved = 0
        for round_ in range(max(0, folded(job) - 1), active):
            overlays = [closed_overlay(job, disk, round_) for disk in job.frozen_disks]
            if round_ < folded(job):  # its copies may be there still, if we were cut off
                for overlay in overlays:
                    drop(job, overlay)
                continue
            for disk, overlay in zip(job.frozen_disks, overlays, strict=True):
                moved += bring(job, [overlay], disk.target)
                prove_files(job, disk, round_)
            fold(job, overlays)
            job.facts.folded = round_ + 1
        return moved

    def _remaining(self, job: Job, round_: int) -> int:
        return sum(job.host.allocated(job.overlay(disk, round_)) for disk in job.frozen_disks)

    def _small(self, job: Job, remaining: int, round_: int) -> bool:
        pause = pause_now(job, self.technology, remaining)
        job.facts.pause_forecast_s = round(pause, 3)
        job.control.forecast(pause)
        if self.technology in MIRRORS:
            return remaining <= SMALL_BYTES or round_ >= _most_rounds(job)
        return pause <= job.control.max_pause_s

    def _next_round(self, job: Job, following: int) -> None:
        prove(job, following - 1)
        job.facts.rounds = following
        fresh = {disk.target: job.overlay(disk, following) for disk in job.frozen_disks}
        job.host.freeze(job.uuid, fresh, None)
        note_overlays(job, following)
        job.facts.grows_since = time.time()

    def _wait_for_calm(self, job: Job, round_: int) -> bool:
        """Say that the guest writes faster than is copied, and wait with the VM untouched.

        Returns whether a further round is worth it: the guest has calmed down, or a person raised a limit.
        """
        job.control.state(JobState.PAUSED, self._why(job, round_))
        asked = (job.control.throttle.ordered_bytes_s, job.control.max_pause_s)
        more = round_ < _most_rounds(job)
        while (job.control.throttle.ordered_bytes_s, job.control.max_pause_s) == asked:
            before = self._remaining(job, round_)
            job.control.wait(GROWTH_S)
            spare_source(job)
            remaining = self._remaining(job, round_)
            if self._small(job, remaining, round_):
                more = False
                break
            if more and self._helps(job, remaining, (remaining - before) / GROWTH_S):
                break
        job.control.state(JobState.RUNNING)
        return more

    def _helps(self, job: Job, remaining: int, growth_bytes_s: float) -> bool:
        """Tell whether one more round, with the guest writing at this rate, leaves little enough for a cut-over."""
        left = growth_bytes_s * (ROUND_FIXED_S + remaining / copy_rate(job))
        return pause_now(job, self.technology, round(left)) <= job.control.max_pause_s

    def _why(self, job: Job, round_: int) -> str:
        now = pause_now(job, self.technology, self._remaining(job, round_))
        return (
            f"{self._slow_part(job)}, a cut-over now would pause it for {now:.1f} s "
            f"(allowed: {job.control.max_pause_s:g} s): raise the limit or the pause with "
            f"`vmferry job limit {job.id} RATE --max-pause SECONDS`, or `vmferry job cancel {job.id}`"
        )

    def _slow_part(self, job: Job) -> str:
        if pause_now(job, self.technology, 0) > job.control.max_pause_s:
            return "the guest's memory alone takes longer than is allowed"
        return "the guest writes as fast as it is copied"


def _most_rounds(job: Job) -> int:
    """Return the highest number that a round may have; the freeze's overlay counts as the first on each disk."""
    return min(MOST_ROUNDS, job.plan.most_overlays - 1)


def _note_growth(job: Job, remaining: int) -> None:
    """Record how fast the guest writes, in bytes a second, as far as the newest overlay shows."""
    since = job.facts.grows_since
    if since is not None:
        job.facts.growth_bytes_s = round(remaining / max(time.time() - since, LEAST_GROWTH_S))


def copy_rate(job: Job) -> float:
    """Bytes a second that this job's rounds reach, under its limit."""
    limit = job.control.throttle.tightest_bytes_s
    return min(full_rate(job), limit) if limit else full_rate(job)


def full_rate(job: Job) -> float:
    """Bytes a second that the storages allow, as far as the base's copy has shown."""
    return _rate(job, DEFAULT_RATE_BYTES_S)


def carry_rate(job: Job) -> float:
    """Bytes a second that the way to another host carries.

    An estimate that is too low for the memory of a running guest costs only time, one that is too high costs pause.
    """
    return _rate(job, CARRY_BYTES_S, LITTLE_BYTES if job.plan.precopy else SURE_BYTES)


def growth_rate(job: Job) -> float:
    """Bytes a second that the guest writes to its disks; 0 while that was not seen."""
    return job.facts.growth_bytes_s or 0.0


def _rate(job: Job, assumed: float, sure_bytes: int = SURE_BYTES) -> float:
    """Return the bytes a second that the base's copy has shown, or what is assumed while that shows little.

    It shows little where a limit held it back, or the job has less than `sure_bytes`: then the higher of both counts.
    """
    measured = job.facts.rate_bytes_s
    if measured is None or measured <= 0:
        return assumed
    unsure = job.facts.limited or job.plan.data_bytes < sure_bytes
    return max(measured, assumed) if unsure else measured


def pause_now(job: Job, technology: Technology, remaining: int) -> float:
    """Seconds that the guest would stand still if it were cut over now."""
    return job.plan.pause_factor * pause_s(
        technology,
        remaining_bytes=remaining,
        rate_bytes_s=full_rate(job),
        memory_bytes=job.plan.touched_bytes,
        precopy=job.plan.precopy,
        disks=len(job.plan.disks),
        carry_bytes_s=carry_rate(job),
        growth_bytes_s=growth_rate(job),
    )


def closed_overlay(job: Job, disk: DiskMove, round_: int) -> ClosedFile:
    """Return a disk's overlay of one round, no longer written to.

    Its copy at the destination lies on the disk's copy, into which all earlier rounds are folded.
    """
    return ClosedFile(job.overlay(disk, round_), job.overlay_copy(disk, round_), disk.to)


def last_overlays(job: Job) -> list[ClosedFile]:
    return [closed_overlay(job, disk, rounds(job)) for disk in job.frozen_disks]
