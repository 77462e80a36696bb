"""Carries the saved state to the other host while it is written."""

from __future__ import annotations

import time

from vmferry.migration.forecast import save_bytes_s
from vmferry.migration.steps.closed_files import ClosedFile
from vmferry.migration.steps.progress import ControlWatch
from vmferry.migration.steps.rounds import carry_rate, full_rate, growth_rate
from vmferry.migration.steps.step import Job, from_served

POSITION_POLL_S = 0.1
"""How often it is asked what is written; what a host said meanwhile is heard at once after each part."""
LEAST_BYTES = 8 << 20
"""Less is not worth a server of its own and connections to it."""


class MemoryStream(ControlWatch):
    """Watch of a save that carries what is written of it to the other host, at each `check`.

    An error raised there ends the save, with the guest running, unless a host is away: then the save goes on alone.
    """

    def __init__(self, job: Job, memory: ClosedFile) -> None:
        super().__init__(job, job.plan.disks[0].target)
        self._memory = memory
        self._brought = 0
        self._asked = 0.0

    def check(self) -> None:
        super().check()
        if time.monotonic() - self._asked < POSITION_POLL_S:
            return
        job = self._job
        self._asked = time.monotonic()
        grown = job.host.serve_growing(job.uuid, self._memory.source, self._brought + LEAST_BYTES)
        if grown is None:
            return
        transfer = from_served(grown.place, self._memory.transfer(job))
        job.there.bring([transfer], ControlWatch(job, self._target, hurry=True))
        self._brought, self._asked = grown.bytes, 0.0


def save_rate(job: Job) -> int:
    """Bytes a second at which the memory of a running guest is to be written."""
    carry = carry_rate(job) if job.plan.relocates else None
    return round(save_bytes_s(job.plan.touched_bytes, growth_rate(job), full_rate(job), carry))
