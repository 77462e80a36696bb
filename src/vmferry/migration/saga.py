"""Walks a plan: forward, back, and only forward after the point of no return.

An operator may declare one end of a relocation lost (`Job.lost`): without the destination a job only goes back,
from wherever it is; without the source only forward.

Each act goes through `once`, which records its outcome durably under a name and on a replay returns the
record without acting. An act that was cut off has no record and runs again: then `found` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol, TypedDict

import structlog

from vmferry.errors import (
    Cancelled,
    DestinationLost,
    HostUnreachable,
    StoreAway,
    Superseded,
    Suspended,
    VmferryError,
    VmHeld,
)
from vmferry.errors.system import in_words
from vmferry.migration.steps.progress import spare_source
from vmferry.migration.steps.step import Job, Step
from vmferry.model import JobState, Lost

log = structlog.get_logger()

UNDO_TRIES = 3
FORWARD_TRIES = 3
RETRY_S = 2.0
SUSPENDED_POLL_S = 1.0
"""Between two looks whether a suspended job may go on, and at the room at the source."""


class Outcome(TypedDict):
    """How an act ended. `kind` is the class of the error, `sentence` what it says."""

    ok: bool
    kind: str
    sentence: str


DONE: Outcome = {"ok": True, "kind": "", "sentence": ""}

Once = Callable[[str, Callable[[], Outcome]], Outcome]


class StepJournal(Protocol):
    """Record of a walk, for people and for the process that takes the job over."""

    def begun(self, act: Literal["do", "undo"], step: Step, number: int) -> None: ...

    def ended(self, act: Literal["do", "undo"], step: Step, number: int, outcome: Outcome) -> None: ...

    def state(self, state: JobState, why: str = "", kind: str = "") -> None:
        """Change the job's state; setting the present state again is allowed."""

    def wait_for_retry(self) -> None:
        """Block until an operator asks to go on with a stuck job; the request stays set until the state changes."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A technology's literal list of steps, and the one after which there is no way back."""

    steps: tuple[Step, ...]
    point_of_no_return: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps)

    @property
    def no_return(self) -> int:
        return self.names.index(self.point_of_no_return)

    @property
    def last_stand(self) -> int:
        """Index of the last step in which a person may suspend the job."""
        return max(number for number, step in enumerate(self.steps) if step.may_stand)


@dataclass(frozen=True, slots=True)
class _Tries:
    """How often an act that must succeed is tried before an operator is asked, and the state meanwhile."""

    state: JobState
    count: int


_BACK = _Tries(JobState.UNDOING, UNDO_TRIES)
_ONWARD = _Tries(JobState.RUNNING, FORWARD_TRIES)


def walk(strategy: Strategy, job: Job, ledger: StepJournal, once: Once) -> JobState:
    """Take a job to its end and return DONE or UNDONE. A stuck job blocks in here until an operator asks to go on."""
    return _Walk(strategy, job, ledger, once).run()


@dataclass(frozen=True, slots=True)
class _Walk:
    strategy: Strategy
    job: Job
    ledger: StepJournal
    once: Once

    def run(self) -> JobState:
        for number, step in enumerate(self.strategy.steps):
            if number <= self.strategy.no_return:
                outcome = self._forward(number, step)
                if outcome["ok"]:
                    continue
                if not self._crossed(number) and self.job.lost is not Lost.SOURCE:
                    return self._back(number, outcome)
            outcome = self._onward(number, step)
            if not outcome["ok"]:
                return self._back(number, outcome)
        self.once("state done", lambda: self._state(JobState.DONE))
        return JobState.DONE

    def _forward(self, number: int, step: Step) -> Outcome:
        return self.once(f"do {number} {step.name}", lambda: self._do(number, step, self.job))

    def _onward(self, number: int, step: Step) -> Outcome:
        """Repeat a step past the point of no return until it succeeds; an operator is asked where it keeps failing.

        It ends without success only when the destination is lost.
        """
        name = f"onward {number} {step.name}"
        return self._until_done(name, lambda: self._do(number, step, self.job.uncancellable()), _ONWARD)

    def _crossed(self, number: int) -> bool:
        """Tell after a failed step whether the job can only go forward.

        At the point of no return: has it taken effect, at least in part? Yes if that cannot be found out. Before it:
        has somebody else made the way back one that loses writes (`Step.overtaken`)? No if that cannot be found out.
        """
        step, job = self.strategy.steps[number], self.job.uncancellable()
        if number < self.strategy.no_return:
            return self.once(f"overtaken {number}", lambda: _answer(step.overtaken, job, doubt=False))["ok"]
        return self.once("crossed", lambda: _answer(step.crossed, job, doubt=True))["ok"]

    def _back(self, number: int, failure: Outcome) -> JobState:
        """Undo the step that had begun and all before it, newest first: what brings the VM home before what cleans up.

        The copies may be all that is left of a disk, and a destination that fails must not keep the VM on overlays.
        """
        self.once("state undoing", lambda: self._state(JobState.UNDOING, failure))
        steps = self.strategy.steps
        for n in sorted(range(number, -1, -1), key=lambda n: steps[n].undone_last):
            self._undone(n, steps[n])
        self.once("state undone", lambda: self._state(JobState.UNDONE, failure))
        return JobState.UNDONE

    def _undone(self, number: int, step: Step) -> None:
        self._until_done(f"undo {number} {step.name}", lambda: self._undo(number, step), _BACK)

    def _until_done(self, name: str, act: Callable[[], Outcome], tries: _Tries) -> Outcome:
        attempt = 1
        while not (outcome := self.once(f"{name} #{attempt}", act))["ok"]:
            if outcome["kind"] == DestinationLost.__name__:
                break
            if attempt % tries.count:
                self.once(f"{name} #{attempt} pause", self._breathe)
            else:
                self._ask_operator(f"{name} #{attempt}", outcome, tries.state)
            attempt += 1
        return outcome

    def _ask_operator(self, name: str, failure: Outcome, back_to: JobState) -> None:
        self.once(f"{name} stuck", lambda: self._stuck(failure))
        self.once(f"{name} retry", lambda: self._state(back_to))

    def _stuck(self, failure: Outcome) -> Outcome:
        self.ledger.state(JobState.STUCK, failure["sentence"], failure["kind"])
        self.ledger.wait_for_retry()
        return DONE

    def _state(self, state: JobState, failure: Outcome = DONE) -> Outcome:
        self.ledger.state(state, failure["sentence"], failure["kind"])
        return DONE

    def _breathe(self) -> Outcome:
        self.job.uncancellable().control.wait(RETRY_S)
        return DONE

    def _do(self, number: int, step: Step, job: Job) -> Outcome:
        self.ledger.begun("do", step, number)
        outcome = _reach(lambda: _patiently(step, job), job)
        self.ledger.ended("do", step, number, outcome)
        return outcome

    def _undo(self, number: int, step: Step) -> Outcome:
        job = self.job.uncancellable()
        self.ledger.begun("undo", step, number)
        outcome = _reach(lambda: step.undo(job), job)
        if step.undone_last and outcome["kind"].startswith("Destination"):
            outcome["sentence"] += f"; {job.plan.vm} is on its own images again, this only cleans up"
        self.ledger.ended("undo", step, number, outcome)
        return outcome


def _patiently(step: Step, job: Job) -> None:
    """Run a step; where a person suspends the job and the step may stand still, wait, then run it again."""
    while True:
        try:
            _act(step, job.suspendable() if step.may_stand else job)
            return
        except Suspended:
            _stand(job)


def _stand(job: Job) -> None:
    """Wait while the job is suspended. Raises what `Control.wait` and `spare_source` raise.

    Nothing is open meanwhile; the guest writes to its overlay, whose room is watched.
    """
    job.control.state(JobState.PAUSED, f"suspended: `vmferry job resume {job.id}` lets it go on")
    job.control.says("suspended")
    while job.control.suspended:
        job.control.wait(SUSPENDED_POLL_S)
        spare_source(job)


def _act(step: Step, job: Job) -> None:
    job.control.check()
    if job.lost is Lost.DESTINATION:
        raise _destination_lost(job)
    job.control.state(
        JobState.RUNNING
    )  # a step that was cut off, or lost its host, may have stood still: it decides anew
    if not step.found(job):
        step.do(job)


def _destination_lost(job: Job) -> DestinationLost:
    crossed = job.facts.pause_s is not None
    as_of = " as it was at the cut-over, what it wrote since is lost" if crossed else ""
    return DestinationLost(host=job.there.name, vm=job.plan.vm, source=job.host.name, as_of=as_of)


def _answer(question: Callable[[Job], bool], job: Job, *, doubt: bool) -> Outcome:
    """Put a yes-or-no question about the job to its hosts; the outcome's `ok` is the answer.

    A host that is away is waited for, since a guess could lose a VM. `doubt`: the answer where none can be had. For the
    point of no return that is yes: the job only goes forward, and each step's `found` decides.
    """
    answers: list[bool] = []
    outcome = _reach(lambda: answers.append(question(job)), job)
    return {"ok": answers[-1] if outcome["ok"] else doubt, "kind": "", "sentence": ""}


def _reach(act: Callable[[], object], job: Job) -> Outcome:
    """Run `act`, again while a host is away or at work on the VM; turn any other error into an outcome.

    Superseded and StoreAway are raised.
    """
    while True:
        try:
            act()
            if job.facts.away is not None:
                job.facts.away = None
            return DONE
        except (HostUnreachable, VmHeld) as away:
            job.control.waits(_waits(job, away))
            try:
                job.control.wait(RETRY_S)
            except Cancelled as cancelled:
                return _failed(cancelled)
        except (Superseded, StoreAway):  # not the step's failure: whoever goes on asks what it came to
            raise
        except VmferryError as error:
            return _failed(error)
        except Exception as error:  # the border of a step: a bug undoes the job, it does not wedge it
            log.exception("a step failed in a way nobody foresaw", job=job.id)
            return _failed(error)


def _waits(job: Job, away: HostUnreachable | VmHeld) -> str:
    """Say which host is waited for, since when, and what an operator can do if it never comes back.

    The host and the time (UTC) are noted in the job's facts.
    """
    host, away_before = str(away.fields["host"]), job.facts.away
    since = away_before[1] if away_before is not None and away_before[0] == host else f"{datetime.now(UTC):%F %T} UTC"
    job.facts.away = [host, since]
    text = (
        f"{away}; it waits since {since}" if isinstance(away, VmHeld) else f"{away}, the job waits for it since {since}"
    )
    ends = (job.plan.connect, job.plan.to)
    if host not in ends or None in ends or isinstance(away, VmHeld):
        return text
    stays = ends[host == job.plan.connect]
    return f"{text}; if it is lost for good: `vmferry job resolve {job.id} --vm-is-at {stays}`"


def _failed(error: Exception) -> Outcome:
    return {"ok": False, "kind": type(error).__name__, "sentence": in_words(error)}
