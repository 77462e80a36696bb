"""The freeze, and the rounds that follow it until the rest is small."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from vmferry.forecast import CARRY_BYTES_S, DEFAULT_RATE_BYTES_S, pause_s
from vmferry.hosts.protocol import Host, Quiesced
from vmferry.model import MIRRORS, DiskMove, JobState, Placed, Power, Technology
from vmferry.steps.base import Job, Step
from vmferry.steps.bringing import Closed, bring, drop
from vmferry.steps.progress import DeskWatch, phase, spare_source

QUIESCE_S = 5.0
THAW_S = 300.0
"""So long a job waits for a guest agent that may have frozen its guest; a freeze writes out all that is dirty."""
MOST_ROUNDS = 32
"""Each round makes the chain one image deeper; QEMU gets slow long before libvirt's limit of 200."""
SMALL_BYTES = 32 << 20
"""A live job mirrors what is below this without a further round."""
SHRINKS = 0.9
"""A round that leaves more than this part of the one before does not converge."""
LOOK_S = 1.0
ROUND_FIXED_S = 0.5
"""A round's own time, however little there is to copy."""
LEAST_LOOK_S = 0.5
"""What an overlay holds at first, its tables, says nothing of how fast it grows."""
SURE_BYTES = 256 << 20
"""A base smaller than this shows what a copy costs to begin, not what the storages can do."""
LITTLE_BYTES = 16 << 20
"""It shows a slow link all the same."""


def rounds(job: Job) -> int:
    """The highest round that was ever begun."""
    count = job.facts.get("rounds")
    return count if isinstance(count, int) else 0


def below(job: Job, disk: DiskMove, round_: int) -> Placed:
    """What the overlay copy of a round lies on at the destination."""
    if round_ == 0:
        return disk.to
    return Placed(job.overlay_copy(disk, round_ - 1), "qcow2")


class Freeze(Step):
    """Send the guest's writes to new overlays, so that the base stops changing."""

    says = "freezing the disks"

    def do(self, job: Job) -> None:
        """With the guest's file systems frozen where its agent answers; it is told to once only, and thawed for sure.

        What comes between the freeze and the thaw, a kill of libvirtd say, would leave the guest standing for good.
        """
        cut_off = job.facts.get("thaw_owed") is True
        if job.plan.agent:
            job.facts.put("thaw_owed", value=True)
        overlays = {disk.target: job.overlay(disk, 0) for disk in job.frozen_disks}
        quiesced = job.host.freeze(job.uuid, overlays, QUIESCE_S if job.plan.agent and not cut_off else None)
        job.facts.put("frozen", value=True)
        job.facts.put("grows_since", time.time())
        if not job.plan.agent:
            return
        job.facts.put("quiesced", (Quiesced.YES if quiesced is Quiesced.YES else Quiesced.NO).value)
        if cut_off or quiesced is Quiesced.UNSURE:
            thaw(job)
        else:
            job.facts.put("thaw_owed", value=False)

    def undo(self, job: Job) -> None:
        """Merge the overlays back into the base; a guest that runs keeps running."""
        if job.facts.get("thaw_owed") is True:
            thaw(job)
        job.facts.put("frozen", value=False)
        merge_down(job, job.host, {disk.target: disk.from_ for disk in job.frozen_disks})
        for disk in job.frozen_disks:
            for round_ in range(rounds(job) + 1):
                job.host.remove(job.overlay(disk, round_))

    def found(self, job: Job) -> bool:
        frozen = all(job.round_of(disk) is not None for disk in job.frozen_disks)
        if frozen:
            job.facts.put("frozen", value=True)
        return frozen and job.facts.get("thaw_owed") is not True


def merge_down(job: Job, host: Host, bases: Mapping[str, Placed]) -> None:
    """Commit each disk's overlays into its base. A host may stand the guest still for the instant of a switch:
    one that was cut off in that instant is let go here, one that a person pauses meanwhile is not."""
    cut_off = job.facts.get("merging")
    if cut_off is None:
        job.facts.put("merging", host.power(job.uuid) is Power.RUNNING)
    for target, base in bases.items():
        host.commit(job.uuid, target, base, DeskWatch(job, target))
    if cut_off is True and host.power(job.uuid) is Power.PAUSED:
        host.resume(job.uuid)
    job.facts.put("merging", None)


def thaw(job: Job) -> None:
    """Tell the guest agent to thaw until it says that it has; give it up after THAW_S, and leave the fact."""
    job.desk.says("waiting for the guest agent: the guest's file systems may be frozen")
    end = time.monotonic() + THAW_S
    while not job.host.thaw(job.uuid, QUIESCE_S):
        if time.monotonic() > end:
            return
        job.desk.wait(LOOK_S)
        spare_source(job)
    job.facts.put("thaw_owed", value=False)


@dataclass(frozen=True)
class Rounds(Step):
    """Close the overlay and copy it, again and again, until the rest is small enough to cut over."""

    technology: Technology
    says = "copying what was written since"
    may_stand = True

    def do(self, job: Job) -> None:
        before = None
        while True:
            round_ = self._round(job)
            with phase(job, f"round {round_}") as moved:
                moved.append(self._copy_closed(job, round_))
            remaining = self._remaining(job, round_)
            _note_growth(job, remaining)
            stalls = before is not None and remaining > SHRINKS * before
            yields = stalls and job.desk.throttle.gives_way
            if self._small(job, remaining, round_) or (stalls and not yields and self.technology in MIRRORS):
                # what no longer shrinks is the mirror's: it follows the guest
                job.facts.put("rounds", round_)
                job.desk.check()  # the last place to stand still before the cut-over
                return
            if yields:
                job.desk.throttle.insists = True  # it is for giving way that the rounds do not shrink
            elif (stalls or round_ >= MOST_ROUNDS) and not self._wait_for_calm(job, round_):
                continue
            before = remaining
            self._next_round(job, round_ + 1)

    def undo(self, job: Job) -> None:
        for disk in job.frozen_disks:
            for round_ in range(rounds(job) + 1):
                drop(job, closed_overlay(job, disk, round_))

    def _round(self, job: Job) -> int:
        return job.round_of(job.frozen_disks[0]) or 0

    def _copy_closed(self, job: Job, active: int) -> int:
        """Copy all overlays below the active ones that are not at the destination yet."""
        return sum(
            bring(job, [closed_overlay(job, disk, round_)], disk.target)
            for round_ in range(active)
            for disk in job.frozen_disks
        )

    def _remaining(self, job: Job, round_: int) -> int:
        return sum(job.host.allocated(job.overlay(disk, round_)) for disk in job.frozen_disks)

    def _small(self, job: Job, remaining: int, round_: int) -> bool:
        pause = forecast(job, self.technology, remaining)
        job.facts.put("pause_forecast_s", round(pause, 3))
        job.desk.forecast(pause)
        if self.technology in MIRRORS:
            return remaining <= SMALL_BYTES or round_ >= MOST_ROUNDS
        return pause <= job.desk.max_pause_s

    def _next_round(self, job: Job, following: int) -> None:
        job.facts.put("rounds", following)
        overlays = {disk.target: job.overlay(disk, following) for disk in job.frozen_disks}
        job.host.freeze(job.uuid, overlays, None)
        job.facts.put("grows_since", time.time())

    def _wait_for_calm(self, job: Job, round_: int) -> bool:
        """The guest writes faster than we copy: say so, and wait with the VM untouched.

        Returns whether a further round is worth it: the guest has calmed down, or a person raised a limit.
        """
        job.desk.state(JobState.PAUSED, self._why(job, round_))
        asked = (job.desk.throttle.ordered_bytes_s, job.desk.max_pause_s)
        more = round_ < MOST_ROUNDS
        while (job.desk.throttle.ordered_bytes_s, job.desk.max_pause_s) == asked:
            before = self._remaining(job, round_)
            job.desk.wait(LOOK_S)
            spare_source(job)
            remaining = self._remaining(job, round_)
            if self._small(job, remaining, round_):
                more = False
                break
            if more and self._helps(job, remaining, (remaining - before) / LOOK_S):
                break
        job.desk.state(JobState.RUNNING)
        return more

    def _helps(self, job: Job, remaining: int, growth_bytes_s: float) -> bool:
        """Would the guest, writing at this rate, leave little enough while one more round is copied?"""
        left = growth_bytes_s * (ROUND_FIXED_S + remaining / copy_rate(job))
        return forecast(job, self.technology, round(left)) <= job.desk.max_pause_s

    def _why(self, job: Job, round_: int) -> str:
        now = forecast(job, self.technology, self._remaining(job, round_))
        return (
            f"{self._slow_part(job)}, a cut-over now would pause it for {now:.1f} s "
            f"(allowed: {job.desk.max_pause_s:g} s): raise the limit or the pause with "
            f"`vmferry job limit {job.id} RATE --max-pause SECONDS`, or `vmferry job cancel {job.id}`"
        )

    def _slow_part(self, job: Job) -> str:
        if forecast(job, self.technology, 0) > job.desk.max_pause_s:
            return "the guest's memory alone takes longer than is allowed"
        return "the guest writes as fast as it is copied"


def _note_growth(job: Job, remaining: int) -> None:
    """How fast the guest writes, as far as the newest overlay shows."""
    since = job.facts.get("grows_since")
    if isinstance(since, float):
        job.facts.put("growth_bytes_s", round(remaining / max(time.time() - since, LEAST_LOOK_S)))


def copy_rate(job: Job) -> float:
    """Bytes a second that this job's rounds reach, under its limit."""
    limit = job.desk.throttle.tightest_bytes_s
    return min(full_rate(job), limit) if limit else full_rate(job)


def full_rate(job: Job) -> float:
    """Bytes a second that the storages allow, as far as the base's copy has shown."""
    return _rate(job, DEFAULT_RATE_BYTES_S)


def carry_rate(job: Job) -> float:
    """Bytes a second that the way to another host carries.

    What is too little for the memory of a guest that runs costs time alone, what is too much costs its pause.
    """
    return _rate(job, CARRY_BYTES_S, LITTLE_BYTES if job.plan.precopy else SURE_BYTES)


def growth_rate(job: Job) -> float:
    """Bytes a second that the guest writes to its disks; 0 while that was not seen."""
    seen = job.facts.get("growth_bytes_s")
    return float(seen) if isinstance(seen, int | float) else 0.0


def _rate(job: Job, assumed: float, sure_bytes: int = SURE_BYTES) -> float:
    """What the base's copy has shown, or what is assumed while that shows little."""
    measured = job.facts.get("rate_bytes_s")
    if not isinstance(measured, int | float) or measured <= 0:
        return assumed
    unsure = job.facts.get("limited") is True or job.plan.data_bytes < sure_bytes
    return max(float(measured), assumed) if unsure else float(measured)


def forecast(job: Job, technology: Technology, remaining: int) -> float:
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


def closed_overlay(job: Job, disk: DiskMove, round_: int) -> Closed:
    """One overlay that is no longer written to, and what it lies on at the destination."""
    return Closed(job.overlay(disk, round_), job.overlay_copy(disk, round_), below(job, disk, round_))


def last_overlays(job: Job) -> list[Closed]:
    return [closed_overlay(job, disk, rounds(job)) for disk in job.frozen_disks]
