"""Records the walk of a job: the journal for people, the state, and at the end the receipt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from vmferry.errors import PlanChanged
from vmferry.manager.jobs.control import JobControl
from vmferry.manager.store import Row, Store
from vmferry.manager.store.codec import dump, load
from vmferry.manager.store.jobs import now
from vmferry.migration.facts import JobFacts
from vmferry.migration.saga import Outcome, Strategy
from vmferry.migration.steps.step import Job, Step
from vmferry.model import FINAL, DiskMove, DiskReceipt, JobState, JobView, Lost, Receipt, Seal, StepRecord, checksum
from vmferry.model.outcomes import outcomes


@dataclass(frozen=True, slots=True)
class JobJournal:
    """The journal of a job that runs in this process. Every method may raise Superseded."""

    store: Store
    control: JobControl
    job: Job
    strategy: Strategy
    freed: Callable[[], None]
    """Called when the job has given its slots back."""

    def begun(self, act: Literal["do", "undo"], step: Step, number: int) -> None:
        says = step.says if act == "do" else f"undoing: {step.says}"
        self.store.begun(self.control.token, StepRecord(act, number, step.name, says, now()))
        self.control.board.show(now=says, held="", step=number + 1, next=self._next(act, number))

    def ended(self, act: Literal["do", "undo"], step: Step, number: int, outcome: Outcome) -> None:
        token = self.control.token
        self.store.ended(token, act, number, ok=outcome["ok"], sentence=outcome["sentence"])
        self.control.board.show()

    def state(self, state: JobState, why: str = "", kind: str = "") -> None:
        receipt = receipt_of(self.job, self.store) if state is JobState.DONE else None
        self.store.advance(self.control.token, state, why, kind, receipt)
        if state is not JobState.STUCK:
            self.control.orders.set(retry=False)
        self.control.board.show()
        if state in FINAL:
            self.freed()

    def wait_for_retry(self) -> None:
        self.control.wait_for_retry()

    def _next(self, act: Literal["do", "undo"], number: int) -> str:
        steps = self.strategy.steps
        if act == "do":
            return steps[number + 1].says if number + 1 < len(steps) else ""
        last = steps[number].undone_last
        same = next((step for step in reversed(steps[:number]) if step.undone_last is last), None)
        if same is None:
            return "" if last else "cleaning up the destination"
        return same.says


def past_return(strategy: Strategy, journal: Sequence[StepRecord]) -> bool:
    """Tell whether the point of no return has been passed, or failed half way."""
    no_return = strategy.no_return
    return any(
        record.act == "do" and (record.number > no_return or (record.number == no_return and record.ended is not None))
        for record in journal
    )


def past_stand(strategy: Strategy, journal: Sequence[StepRecord]) -> bool:
    """Tell whether the cut-over has begun, in which a job cannot be suspended."""
    return any(record.act == "do" and record.number > strategy.last_stand for record in journal)


def plan_changed(row: Row) -> PlanChanged:
    """Return the error for a job whose plan another version of vmferry made."""
    return PlanChanged(job=row.id, theirs=row.version, ours=version("vmferry"))


def receipt_of(job: Job, store: Store) -> Receipt:
    """Return the job's receipt, from what its steps found out."""
    facts, lost = job.facts, job.lost is Lost.SOURCE
    receipt = Receipt(
        job=job.id,
        vm=job.plan.vm,
        technology=job.plan.technology.value,
        disks=tuple(_disk(job, disk) for disk in job.plan.disks),
        phases=store.phases(job.id),
        pause_forecast_s=job.plan.pause_forecast_s if facts.pause_forecast_s is None else facts.pause_forecast_s,
        pause_s=facts.pause_s or 0.0,
        pause_allowed_s=job.control.max_pause_s,
        verified=facts.verified,
        rounds=facts.rounds,
        finished=now(),
        kept=tuple(map(Path, facts.kept or ())),
        clock=facts.clock or "",
        from_host=job.plan.connect if job.plan.to else "",
        to_host=job.plan.to or "",
        lost=job.plan.connect if lost else "",
        left=tuple(map(Path, facts.left or ())) if lost else (),
        checkpoints_dropped=job.plan.checkpoints,
        next_start=tuple(facts.next_start or ()),
        stayed=tuple(facts.stayed or ()),
        sources=() if lost else outcomes(job.plan.sources, facts.outcome.__getitem__),
        ejected=tuple(facts.ejected or ()),
        quiesced="unsure" if facts.thaw_owed else facts.quiesced or "",
    )
    return replace(receipt, checksum=checksum(json.loads(dump(receipt))))


def with_remarks(view: JobView, facts: JobFacts) -> JobView:
    """Add ejected discs and overlays that stay to the sentence of a job; one that is done has them in its receipt."""
    if view.state is JobState.DONE or not view.sentence:
        return view
    remarks = [view.sentence]
    if facts.ejected:
        remarks.append(f"left out, its file being gone: {', '.join(facts.ejected)}")
    if facts.stayed and view.state is JobState.UNDONE:
        remarks.append(f"not removed, since somebody's image or saved memory needs it: {', '.join(facts.stayed)}")
    if facts.unmerged:
        kept = ", ".join(facts.unmerged)
        remarks.append(
            f"what the VM had written since the move began is kept in {kept}: it has run without that, or may have, "
            "and the two do not fit together"
        )
    return replace(view, sentence="; ".join(remarks))


def _disk(job: Job, disk: DiskMove) -> DiskReceipt:
    facts = job.facts
    rounds = range(facts.rounds + 1)
    sources = [*(image.source for image in disk.images), *(job.overlay(disk, round_) for round_ in rounds)]
    return DiskReceipt(
        target=disk.target,
        from_=str(disk.active.source),
        to=str(disk.active.destination),
        format=disk.to.format,
        virtual_bytes=disk.active.virtual_bytes,
        copied_bytes=sum(facts.copied[source] for source in sources),
        root_hash=facts.hash[disk.active.source] or "",
        seal=_seal(disk, facts.seal[disk.active.source]),
    )


def _seal(disk: DiskMove, fact: str | None) -> Seal | None:
    """Return the seal as it was compared, under the image's real name.

    Promoting the image changed its ctime, so that is not judged.
    """
    if fact is None:
        return None
    return replace(load(Seal, fact), at=str(disk.active.destination), ctime="")
