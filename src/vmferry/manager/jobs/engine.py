"""The durable engine: one workflow for each job, each act recorded once. Nothing else knows that it is DBOS.

What DBOS gives: a workflow that a crash cut off runs again at the next start, and acts whose end was recorded
answer from the record. What it does not know (begin of a step, slots, cancel, who may act) is ours.
DBOS is one to a process, and so is the Engine.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from threading import Condition
from typing import Final

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID
from dbos import error as dbos_errors

from vmferry.errors import StoreAway, VmferryError
from vmferry.manager.jobs.control import Stopped
from vmferry.manager.store.database import Connections, know_subseconds, make_engine
from vmferry.migration.saga import Once, Outcome
from vmferry.process.state import ManagerIdentity

log = structlog.get_logger()

APPLICATION_VERSION: Final = "1"
"""DBOS recovers only workflows of its own version. Ours is in the plan: each job checks its list of steps."""
EXECUTOR: Final = "worker"
"""Of a manager that is alone: DBOS itself goes on with what its last process left."""
QUEUE_LOOK_S: Final = 0.25
POOL_SIZE: Final = 20
KEPT_WORKFLOWS = 100
"""Finished workflows that stay in DBOS's tables; the jobs themselves stay in ours."""

Run = Callable[[str, Once], None]
"""Takes a job to its end, each act by way of `once`. Raises Stopped to leave it as it is."""


class Engine:
    """Runs workflows from `start` to `close`; `run` is called in a thread of its own for each job."""

    _current: Engine | None = None

    def __init__(self, identity: ManagerIdentity, run: Run) -> None:
        self._identity = identity
        self._run = run
        self._queue = None if identity.alone else f"manager {identity.manager}"
        self._running: Counter[str] = Counter()
        self._halted: set[str] = set()
        self._anew: dict[str, Callable[[], None]] = {}
        self._changed = Condition()
        self._pool: Connections | None = None

    def start(self) -> None:
        """Start DBOS. Raises RuntimeError if another engine of this process is open.

        A manager that is alone goes on with all workflows that were cut off (within about a second).
        """
        if Engine._current is not None:
            raise RuntimeError("DBOS is one to a process: close the other engine first")
        logging.getLogger("dbos").addHandler(logging.NullHandler())  # so that it adds no handler for a console
        logging.getLogger("dbos").setLevel(logging.ERROR)
        Engine._current = self
        try:
            DBOS(config=self._alone() if self._identity.alone else self._among())
            if self._queue is not None:
                DBOS.listen_queues([self._queue])
            DBOS.launch()
            if self._queue is not None:
                DBOS.register_queue(self._queue, polling_interval_sec=QUEUE_LOOK_S, on_conflict="always_update")
        except BaseException:
            Engine._current = None
            raise

    def close(self, patience_s: float) -> bool:
        """Wait up to `patience_s` for running workflows to leave (tell them first), then stop.

        Returns False if one still acts.
        """
        deadline = time.monotonic() + patience_s
        with self._changed:
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            gone = not self._running
        DBOS.destroy()
        if self._pool is not None:
            self._pool.dispose()
        Engine._current = None
        return gone

    def launch(self, job: str) -> None:
        """Start the job's workflow in this process, unless the job has one."""
        with self._changed:
            self._halted.discard(job)
        with SetWorkflowID(job):
            DBOS.start_workflow(move, job)

    def without_workflow(self, jobs: Iterable[str]) -> list[str]:
        """Return those of the jobs that have no workflow yet: a crash came between their row and their workflow."""
        wanted = list(jobs)
        if not wanted:
            return []
        known = {
            found.workflow_id for found in DBOS.list_workflows(workflow_ids=wanted, load_input=False, load_output=False)
        }
        return [job for job in wanted if job not in known]

    def running(self) -> set[str]:
        """Return the jobs that are walked in this process at the moment."""
        with self._changed:
            return set(self._running)

    def halt(self, jobs: Iterable[str]) -> None:
        """Mark jobs to go on here with the next `resume_halted`, wherever they ran before."""
        with self._changed:
            self._halted.update(jobs)

    def resume_halted(self, mine: Callable[[], Iterable[str]]) -> None:
        """Resume the marked jobs that are `mine`: they were taken over, or stopped by an error of store or engine.

        Others were taken over by another manager, and resuming them would take them from it.
        """
        with self._changed:
            halted, self._halted = self._halted, set()
        try:
            if halted:
                halted &= set(mine())  # asked later than they stood: what is not among them now is another's
            while halted:
                DBOS.resume_workflow(job := min(halted), queue_name=self._queue)
                halted.remove(job)
        finally:
            self.halt(halted)

    def begin_anew(self, job: str, left: Callable[[], None]) -> None:
        """Have a running job that is told to stop go on from its records once it has stopped; `left` is called then.

        A job that does not run in this process reads its records anyway when it begins.
        """
        with self._changed:
            if job in self._running:
                self._anew[job] = left

    def tidy(self, over: Callable[[Iterable[str]], Iterable[str]]) -> None:
        """Forget finished workflows but the last KEPT_WORKFLOWS, and all workflows whose job is `over`.

        The manager of such a job died at the very end.
        """
        finished = DBOS.list_workflows(
            status=["SUCCESS", "ERROR"],
            sort_desc=True,
            offset=KEPT_WORKFLOWS,
            limit=KEPT_WORKFLOWS,
            load_input=False,
            load_output=False,
        )
        forgotten = [found.workflow_id for found in finished]
        if not self._identity.alone:
            unfinished = DBOS.list_workflows(status=["PENDING", "ENQUEUED"], load_input=False, load_output=False)
            forgotten += over([found.workflow_id for found in unfinished])
        if forgotten:
            DBOS.delete_workflows(forgotten)

    def _take(self, job: str) -> None:
        with self._changed:
            self._running[job] += 1  # what an old epoch left may still run beside the new one
        try:
            self._run(job, once)
        except Stopped as stopped:
            if _may_pass(stopped.__cause__):
                self.halt([job])
            raise
        except dbos_errors.DBOSWorkflowConflictIDError as lost:
            raise Stopped from lost  # resumed elsewhere, or anew here; DBOS would poll for its end in this thread
        except StoreAway as away:
            self.halt([job])
            raise Stopped from away
        except Exception as error:
            # An error here would end the workflow, and with it the job: leave it, and try again.
            log.exception("a workflow failed outside its steps", job=job)
            self.halt([job])
            raise Stopped from error
        finally:
            with self._changed:
                self._running -= Counter([job])
                left = self._anew.pop(job, None)
                if left is not None:
                    self._halted.add(job)
                self._changed.notify_all()
            if left is not None:
                left()

    def _alone(self) -> DBOSConfig:
        database = self._identity.folder / "engine.db"
        know_subseconds()
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays in the file; half the fsyncs of a record
        return _config(EXECUTOR) | {"system_database_url": f"sqlite:///{database}"}

    def _among(self) -> DBOSConfig:
        """Return DBOS's configuration for one of several managers.

        Each process is an executor of its own name: so DBOS recovers nothing by itself, for it would give it to any
        manager.
        """
        self._pool = make_engine(self._identity.records, pool_size=POOL_SIZE, max_overflow=0)
        # Polling, since we wait for no events of DBOS: its listener is one more connection that can break.
        return _config(f"{self._identity.manager} {secrets.token_hex(4)}") | {
            "system_database_engine": self._pool,
            "use_listen_notify": False,
        }


def _may_pass(cause: BaseException | None) -> bool:
    """Tell whether the store or the engine failed, rather than that somebody told this process to stop."""
    return isinstance(cause, StoreAway) or (cause is not None and not isinstance(cause, VmferryError))


def once(name: str, act: Callable[[], Outcome]) -> Outcome:
    """Run an act and record its outcome, or return the recorded one. Raises Stopped where the act raises.

    What the act raises is never recorded.
    """

    def guarded() -> Outcome:
        try:
            return act()
        except Exception as error:
            if not isinstance(error, VmferryError):
                log.exception("an act could not be recorded", act=name)
            raise Stopped from error

    return DBOS.run_step({"name": name}, guarded)


@DBOS.workflow(name="move", max_recovery_attempts=None)
def move(job: str) -> None:
    """Take a job to its end: the DBOS workflow of every job."""
    if Engine._current is None:
        raise Stopped
    Engine._current._take(job)


def _config(executor: str) -> DBOSConfig:
    return {
        "name": "vmferry",
        "application_version": APPLICATION_VERSION,
        "executor_id": executor,
        "serializer": DBOSPortableJSONSerializer(),
        "enable_otlp": False,
        "log_level": "ERROR",
        "notification_listener_polling_interval_sec": 1.0,
    }
