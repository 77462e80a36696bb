"""One image again, at the destination."""

from __future__ import annotations

from vmferry.steps.base import Job, Step
from vmferry.steps.freeze import merge_down, rounds
from vmferry.steps.progress import phase


class Merge(Step):
    """Commit the overlays into the base at the destination, while the guest runs."""

    says = "merging the overlays"

    def do(self, job: Job) -> None:
        job.facts.put("frozen", value=False)  # the overlays grow at the destination now: nothing to spare at the source
        with phase(job, "merge"):
            merge_down(job, job.there, {disk.target: disk.to for disk in job.frozen_disks})
        for disk in job.frozen_disks:
            for round_ in range(rounds(job) + 1):
                job.there.remove(job.overlay_copy(disk, round_))
