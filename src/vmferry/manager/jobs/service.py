"""Jobs: submit, list, watch, cancel, limit, retry, and what becomes of them after a crash.

What a person wants is written to the store first, then told to the job if it runs. A dispatcher thread gives
slots to queued jobs; each job runs in a workflow of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from threading import Event, Thread

import structlog

from vmferry.errors import HostUnreachable, PlanChanged, StoreAway, WrongState
from vmferry.hosts.interface import Host, Hosts
from vmferry.hosts.lost import LostHost
from vmferry.manager.fleet.file_users import Storages
from vmferry.manager.jobs.active import ActiveJobs
from vmferry.manager.jobs.admission import Admission, check_limits
from vmferry.manager.jobs.control import JobControl, Stopped, StoredFacts
from vmferry.manager.jobs.engine import Engine
from vmferry.manager.jobs.failover import Failover
from vmferry.manager.jobs.journal import JobJournal, past_return, past_stand, plan_changed, with_remarks
from vmferry.manager.jobs.resolve import host_of, resolution, with_facts
from vmferry.manager.limits.shared import Limits
from vmferry.manager.limits.slots import jobs_at_once
from vmferry.manager.notify import delivery
from vmferry.manager.store import Row, Store
from vmferry.migration.facts import JobFacts
from vmferry.migration.saga import RETRY_S, Once, Strategy, walk
from vmferry.migration.steps.step import Job
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import (
    ACTIVE,
    FINAL,
    FencingToken,
    JobState,
    JobView,
    Lost,
    MoveRequest,
    Plan,
    Priority,
    Progress,
    Receipt,
    StepRecord,
    Technology,
)
from vmferry.process.folder_lock import WorkerLock
from vmferry.process.state import ManagerIdentity

log = structlog.get_logger()

QUEUE_POLL_S = 15.0
"""The dispatcher looks so often without being asked: for jobs that an error of the store left behind."""
PATIENCE_S = 20.0
BUSY = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.PAUSED, JobState.UNDOING})


class Keep(Enum):
    """Value of a parameter that leaves a limit as it is."""

    KEEP = "keep"


class Jobs:
    """All jobs of one manager's records. Everything but `start` and `close` may be called from any thread.

    `at`: a state folder of its own, or the identity of one of several managers.
    """

    def __init__(
        self,
        at: Path | ManagerIdentity,
        hosts: Hosts,
        strategies: Callable[[Technology], Strategy] = STRATEGIES.__getitem__,
        storages: Storages = tuple,
    ) -> None:
        self._identity = ManagerIdentity.at(at) if isinstance(at, Path) else at
        self.state = self._identity.folder
        self._hosts = hosts
        self._strategy = strategies
        self._storages = storages
        self._lock = WorkerLock(self.state)
        self._engine = Engine(self._identity, self._run)
        self._active = ActiveJobs()
        self._orders = self._active.orders
        self._managers: Failover | None = None
        self._wake = Event()
        self._closing = False
        self._at_start: list[str] = []
        self._dispatcher = Thread(target=self._dispatch, name="dispatcher", daemon=True)

    # -- life

    def start(self) -> None:
        """Lock the state folder, and go on with every job that was in flight. Raises WorkerRunning, StoreAway."""
        self.state.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        self._store = Store(self._identity.records, self._identity.manager, self._identity.machine)
        self._admission = Admission(self._identity, self._hosts, self._store, self._storages)
        self.limits = Limits(self._store, self._hosts)
        self.limits.tell(self._opened_or_closed)
        self.limits.start()
        if self._identity.alone:
            self._store.take_over()
        self._at_start = [row.id for row in self._store.rows(ACTIVE)]
        self._engine.start()
        if not self._identity.alone:
            self._managers = Failover(self._identity, self._store, self._active, self._engine, self._wake.set)
            self._managers.start()
        self._wake.set()
        self._dispatcher.start()

    def close(self) -> None:
        """Leave all jobs as they are, for the next worker or another manager to go on with."""
        self._closing = True
        self._wake.set()
        self._dispatcher.join(PATIENCE_S)  # in the engine it would wait for its database to come back
        if self._managers is not None:
            self._managers.close()
        self._active.stop_all()
        self.limits.close()
        if self._engine.close(PATIENCE_S):
            if self._managers is not None:
                self._managers.release()
            self._store.close()
            self._lock.release()
        else:
            log.warning("a call to a host has not returned: the state stays locked until this process ends")

    # -- submitting

    def plan(self, request: MoveRequest) -> Plan:
        """Return what a move would do, and all that stands against it. Raises NoSuchVm, NoSuchDisk, VmBusy."""
        return self._admission.plan(request)

    def submit(self, request: MoveRequest) -> JobView:
        """Queue a move; durable when this returns. Raises UsageError, VmBusy, Refused, and writes nothing then."""
        check_limits(request.limit_bytes_s, request.max_pause_s)
        delivery.check(request.notify)
        row = self._store.add(self._admission.job(request))
        self._wake.set()
        return self._view(row)

    def refuse_busy(self, uuid: str) -> None:
        """Raise VmBusy while a job moves the VM."""
        self._store.refuse_busy(uuid)

    # -- looking

    def list(self) -> list[JobView]:
        """Return all jobs, newest first, without their journals."""
        return [row.view(self._progress(row), ()) for row in self._store.rows()]

    def get(self, id: str) -> JobView:
        """Return the job whose id begins so. Raises NoSuchJob, AmbiguousJob."""
        return self._view(self._store.row(self._store.find(id)))

    def receipt(self, id: str) -> Receipt:
        """Return the receipt of a finished job. Raises NoSuchJob, AmbiguousJob, WrongState."""
        row = self._store.row(self._store.find(id))
        receipt = self._store.receipt(row.id)
        if receipt is None:
            raise WrongState(job=row.id, state=row.state.value, action="a receipt", allowed="done")
        return receipt

    def changed(self, id: str, after: int, timeout_s: float) -> tuple[int, JobView]:
        """Wait until the job's version differs from `after`, at most `timeout_s`. Returns its version and itself.

        Versions belong to this process, and begin at 1: with `after` 0 this returns at once.
        """
        job = self._store.find(id)
        version = self._active.wait(job, after, timeout_s, lambda: self._closing)
        return version, self.get(job)

    def in_flight(self) -> int:
        """Count the jobs that need a worker; a stuck one waits for an operator and needs none.

        Jobs of other managers count too: somebody must be there to take them over. 1 while the store is away.
        """
        try:
            stuck = self._store.rows({JobState.STUCK})
            return self._store.count(BUSY) + sum(row.retry_asked for row in stuck)
        except StoreAway:
            return 1  # nobody knows: stay

    def recover(self, timeout_s: float | None = None) -> Sequence[JobView]:
        """Wait until nothing is in flight. Returns the jobs that were, when this worker started."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.in_flight() and (deadline is None or time.monotonic() < deadline):
            self._active.wait_for_any(0.5)
        return [self.get(job) for job in self._at_start]

    # -- asking

    def cancel(self, id: str) -> JobView:
        """Ask for the job to be undone; one in the queue fails. Raises WrongState when it is too late."""
        row = self._store.row(self._store.find(id))
        if self._store.change(row.id, JobState.FAILED, "cancelled", "Cancelled", {JobState.QUEUED}):
            self._ended(row.id)
            return self.get(row.id)
        row = self._store.row(row.id)
        if row.state in FINAL or (row.state is not JobState.UNDOING and self._past(row, past_return)):
            allowed = "active and before its point of no return"
            raise WrongState(job=row.id, state=row.state.value, action="cancel", allowed=allowed)
        return self._tell(row.id, cancel_asked=True)

    def suspend(self, id: str) -> JobView:
        """Have a job stand still as soon as it copies, the VM running on. Raises WrongState once it cuts over."""
        row = self._store.row(self._store.find(id))
        if row.state not in (JobState.RUNNING, JobState.PAUSED) or self._past(row, past_stand):
            allowed = "running and before its cut-over"
            raise WrongState(job=row.id, state=row.state.value, action="suspend", allowed=allowed)
        return self._tell(row.id, suspend_asked=True)

    def resume(self, id: str) -> JobView:
        """Let a suspended job go on; one that was not stays as it is. Raises WrongState."""
        row = self._store.row(self._store.find(id))
        if row.state in FINAL:
            raise WrongState(job=row.id, state=row.state.value, action="resume", allowed="active")
        return self._tell(row.id, suspend_asked=False)

    def limit(
        self, id: str, *, limit_bytes_s: int | Keep | None = Keep.KEEP, max_pause_s: float | None = None
    ) -> JobView:
        """Change limits of an active job at once; `limit_bytes_s` None means none. Raises WrongState, UsageError."""
        row = self._store.row(self._store.find(id))
        if row.state in FINAL:
            raise WrongState(job=row.id, state=row.state.value, action="a new limit", allowed="active")
        rate = row.limit_bytes_s if isinstance(limit_bytes_s, Keep) else limit_bytes_s
        pause_s = row.max_pause_s if max_pause_s is None else max_pause_s
        check_limits(rate, pause_s)
        return self._tell(row.id, limit_bytes_s=rate, max_pause_s=pause_s)

    def prefer(self, id: str, priority: Priority) -> JobView:
        """Change an active job's priority, in the queue and before the storages. Raises WrongState."""
        row = self._store.row(self._store.find(id))
        if row.state in FINAL:
            raise WrongState(job=row.id, state=row.state.value, action="another priority", allowed="active")
        view = self._tell(row.id, priority=priority.rank)
        self._wake.set()
        return view

    def retry(self, id: str) -> JobView:
        """Have a stuck job try again; resubmit an undone or failed one as a new job. Raises WrongState, PlanChanged."""
        row = self._store.row(self._store.find(id))
        if row.state in (JobState.UNDONE, JobState.FAILED):
            return self.submit(row.request)
        if row.state is not JobState.STUCK:
            allowed = "stuck, undone or failed"
            raise WrongState(job=row.id, state=row.state.value, action="retry", allowed=allowed)
        if self._strategy(row.plan.technology).names != row.plan.steps:
            raise plan_changed(row)
        return self._tell(row.id, retry_asked=True)

    def resolve(self, id: str, vm_is_at: str, vm: str) -> JobView:
        """Declare a relocation's host other than `vm_is_at` lost: it is not asked any more. `vm`: its name, to confirm.

        Raises UsageError, WrongState, NotResolvable, PlanChanged.
        """
        row = self._store.row(self._store.find(id))
        said = resolution(self._hosts, row.id, row.plan, vm_is_at, vm)
        if self._strategy(row.plan.technology).names != row.plan.steps:
            raise plan_changed(row)
        self._engine.begin_anew(row.id, self._wake.set)  # before: once superseded, it may end by itself at any instant
        self._store.declare_lost(row.id, said.lost, said.judge)
        self._engine.begin_anew(row.id, self._wake.set)  # one that has begun since, with the epoch of before
        self._active.stop(row.id)
        return self.get(row.id)

    def _tell(self, job: str, **columns: object) -> JobView:
        row = self._store.ask(job, **columns)
        self._active.tell(row)
        self._active.bump(job)
        return self._view(row)

    def _past(self, row: Row, border: Callable[[Strategy, Sequence[StepRecord]], bool]) -> bool:
        """Tell whether a job has passed a border; always True without its source: then it only goes forward."""
        lost = JobFacts.of(self._store.facts(row.id)).lost == Lost.SOURCE
        return lost or border(self._strategy(row.plan.technology), self._store.journal(row.id))

    # -- leftovers

    def leftovers(self, connect: str, folders: Sequence[Path] = ()) -> Sequence[str]:
        """Return what carries the id of a job that is not active, in these folders and in those of all plans."""
        return self._admission.leftovers.list(connect, folders)

    def reap(self, connect: str, folders: Sequence[Path] = ()) -> Sequence[str]:
        """Remove the leftovers of jobs that are known here and have ended. Returns what was removed."""
        return self._admission.leftovers.reap(connect, folders)

    # -- running

    @property
    def _standing(self) -> bool:
        return self._managers is None or self._managers.standing

    def _dispatch(self) -> None:
        """Give slots to queued jobs and workflows to started ones, whenever something has changed."""
        while not self._closing:
            try:
                if self._standing:
                    self._start_jobs()
            except StoreAway as away:
                log.warning("jobs could not be started; trying again", reason=str(away))
            except Exception:
                log.exception("jobs could not be started; trying again")  # a thread's own border
            self._wake.wait(QUEUE_POLL_S)
            self._wake.clear()

    def _start_jobs(self) -> None:
        self._store.start_waiting(lambda slot: 0 if self.limits.closed((slot,)) else jobs_at_once(slot))
        mine = self._store.mine()
        for job in sorted(self._engine.without_workflow(mine), key=mine.index, reverse=True):
            self._engine.launch(job)
            self._active.bump(job)
        self._engine.resume_halted(self._store.mine)
        self._engine.tidy(self._store.over)

    def _run(self, id: str, once: Once) -> None:
        """Take a job to its end; called by the engine. Raises Stopped to leave the job as it is."""
        row = self._store.row(id)
        if row.state in FINAL:
            return
        if self._closing or not self._standing or row.manager != self._identity.manager:
            raise Stopped
        token = FencingToken(id, row.epoch)
        strategy = self._strategy(row.plan.technology)
        self._confirm_plan(row, token, strategy)
        control = self._desk(token)
        facts = StoredFacts(self._store, token, self._store.facts(id))
        host = self._open(row.plan, Lost.SOURCE, facts, control)
        there = self._open(row.plan, Lost.DESTINATION, facts, control) if row.plan.to else host
        ask = self._admission.others.asking(id)
        job = Job(id, row.plan, host, there, JobFacts(facts), control, self._bookmarks(id), ask)
        walk(strategy, job, JobJournal(self._store, control, job, strategy, lambda: self._ended(id)), once)

    def _confirm_plan(self, row: Row, token: FencingToken, strategy: Strategy) -> None:
        """Make the job stuck and raise Stopped if its planned steps are others; one stuck for only that goes on."""
        if strategy.names != row.plan.steps:
            error = plan_changed(row)
            self._store.advance(token, JobState.STUCK, str(error), type(error).__name__)
            self._active.bump(row.id)
            raise Stopped from error
        if row.state is JobState.STUCK and row.kind == PlanChanged.__name__:
            self._store.advance(token, row.before_stuck or JobState.RUNNING)

    def _desk(self, token: FencingToken) -> JobControl:
        control = self._active.open(self._store, token, self.limits)
        if self._closing or not self._standing:  # it may have been closed before it was opened
            raise Stopped
        return control

    def _open(self, plan: Plan, end: Lost, facts: StoredFacts, control: JobControl) -> Host:
        """Return the host at that end of the move, waiting while it is away; a lost one is never asked."""
        name = host_of(plan, end)
        if JobFacts(facts).lost == end:
            return LostHost(name, facts.note_left)
        while True:
            try:
                return self._hosts.open(name, facts.token)
            except HostUnreachable as away:
                control.waits(f"{away}, the job waits for it")
                control.uncancellable().wait(RETRY_S)

    def _bookmarks(self, job: str) -> Path:
        folder = self._identity.shared_folder / "bookmarks" / job
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _ended(self, job: str) -> None:
        with suppress(OSError):  # gone, or a transfer's bookmarks are left for an operator to see
            (self._identity.shared_folder / "bookmarks" / job).rmdir()
        self._active.bump(job)
        self._wake.set()

    # -- views

    def _view(self, row: Row) -> JobView:
        view = row.view(self._progress(row), self._store.journal(row.id))
        facts = JobFacts.of(self._store.facts(row.id))
        return with_facts(with_remarks(replace(view, notices=self._store.notices(row.id)), facts), facts)

    def _opened_or_closed(self) -> None:
        """Wake watchers and dispatcher, since a calendar lets queued jobs begin, or no longer."""
        for row in self._store.rows({JobState.QUEUED}):
            self._active.bump(row.id)
        self._wake.set()

    def _progress(self, row: Row) -> Progress:
        if row.state is JobState.QUEUED:
            return Progress(steps=len(row.plan.steps), held=self.limits.closed(row.slots))
        return self._active.progress(row, self._identity.manager)
