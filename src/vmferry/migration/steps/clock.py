"""The guest's own clock, which stands while the guest does and is not put right by anything when memory is loaded."""

from __future__ import annotations

import time
from shlex import quote

from vmferry.errors import HostRefused, NoSuchVm
from vmferry.hosts.interface import Host
from vmferry.hosts.records import GuestClock
from vmferry.migration.steps.step import Job, Step

AGENT_S = 5.0
WAIT_S = 15.0
"""So long an agent that answered before the move may take to answer after it."""
AGENT_POLL_S = 1.0
"""Between two calls of a guest agent that does not answer yet."""
RIGHT_S = 1.0
LATE_S = 0.25
"""What is less is no more than the asking takes."""
OWN_TIME_S = 60.0


class SetClock(Step):
    """Correct the clock of a guest whose memory was loaded; where that cannot be done, say so. It never fails."""

    says = "setting the guest's clock"

    def do(self, job: Job) -> None:
        set_clock(job, job.there, job.facts.pause_s or 0.0)

    def found(self, job: Job) -> bool:
        return not job.facts.ran or job.facts.clock is not None


def set_clock(job: Job, host: Host, stood_s: float) -> None:
    """Have the guest agent set the guest's clock, and note in the job's facts what came of it.

    `stood_s`: seconds that the guest stood still. The guest runs already. An agent is waited for, up to WAIT_S, only if
    it answered before the move.
    """
    until = time.monotonic() + (WAIT_S if job.plan.agent else 0.0)
    while (clock := _asked(job, host, stood_s)) is None and time.monotonic() < until:
        job.control.wait(AGENT_POLL_S)
    where = f" on {host.name}" if job.plan.relocates else ""
    job.facts.clock = clock_note(clock, stood_s, f"`virsh domtime {quote(job.plan.vm)} --sync`{where}")


def _asked(job: Job, host: Host, stood_s: float) -> GuestClock | None:
    try:
        return host.set_clock(job.uuid, stood_s, AGENT_S)
    except (HostRefused, NoSuchVm):  # it stands, it was ended: nothing that a job should fail for
        return None


def clock_note(clock: GuestClock | None, stood_s: float, command: str) -> str:
    """Return what a person has to know of the guest's clock; empty when it is right and was not set.

    `clock`: what the agent said, None without an answer. `stood_s`: seconds that the guest stood still. `command`: what
    sets the clock.
    """
    cure = f"{command} sets it, so does the guest's own NTP, or `hwclock --hctosys` in it"
    if clock is None:
        return f"behind by {stood_s:.1f} s, no guest agent answers: {cure}" if stood_s >= LATE_S else ""
    if clock.now_s < RIGHT_S:
        late = clock.before_s >= LATE_S
        return f"set by the guest agent, it was behind by {clock.before_s:.1f} s" if late else ""
    if abs(clock.before_s - stood_s) > OWN_TIME_S:
        return f"left as it is, {clock.now_s:.0f} s behind the host's: the guest keeps a time of its own"
    return f"behind by {clock.now_s:.1f} s, the guest agent could not set it: {cure}"
