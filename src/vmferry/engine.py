"""The durable engine: one workflow for each job, each act recorded once. Nothing else knows that it is DBOS.

What DBOS gives: a workflow that a crash cut off runs again at the next start, and acts whose end was recorded
answer from the record. What it does not know (begin of a step, slots, cancel, who may act) is ours.
DBOS is one to a process, and so is the Engine.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from threading import Condition
from typing import Final

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from vmferry.desk import Stopped
from vmferry.errors import VmferryError
from vmferry.saga import Once, Outcome

log = structlog.get_logger()

APPLICATION_VERSION: Final = "1"
"""DBOS recovers only workflows of its own version. Ours is in the plan: each job checks its list of steps."""
EXECUTOR: Final = "worker"
KEPT_WORKFLOWS = 100
"""Finished workflows that stay in DBOS's tables; the jobs themselves stay in ours."""

Run = Callable[[str, Once], None]
"""Takes a job to its end, each act by way of `once`. Raises Stopped to leave it as it is."""


class Engine:
    """Runs workflows from `start` to `close`; `run` is called in a thread of its own for each job."""

    _current: Engine | None = None

    def __init__(self, database: Path, run: Run) -> None:
        self._database = database
        self._run = run
        self._running: set[str] = set()
        self._halted: set[str] = set()
        self._anew: dict[str, Callable[[], None]] = {}
        self._changed = Condition()

    def start(self) -> None:
        """Start, and go on with all workflows that were cut off (within about a second)."""
        if Engine._current is not None:
            raise RuntimeError("DBOS is one to a process: close the other engine first")
        logging.getLogger("dbos").addHandler(logging.NullHandler())  # so that it adds no handler for a console
        logging.getLogger("dbos").setLevel(logging.ERROR)
        Engine._current = self
        with closing(sqlite3.connect(self._database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays in the file; half the fsyncs of a record
        try:
            DBOS(config=_config(self._database))
            DBOS.launch()
        except BaseException:
            Engine._current = None
            raise

    def close(self, patience_s: float) -> bool:
        """Wait for running workflows to leave (tell them first), then stop. False if one still acts."""
        deadline = time.monotonic() + patience_s
        with self._changed:
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            gone = not self._running
        DBOS.destroy()
        Engine._current = None
        return gone

    def launch(self, job: str) -> None:
        """Start the job's workflow, unless it has one."""
        with SetWorkflowID(job):
            DBOS.start_workflow(move, job)

    def without_workflow(self, jobs: Iterable[str]) -> list[str]:
        """Those jobs that have none yet: a crash came between their row and their workflow."""
        wanted = list(jobs)
        if not wanted:
            return []
        known = {
            found.workflow_id for found in DBOS.list_workflows(workflow_ids=wanted, load_input=False, load_output=False)
        }
        return [job for job in wanted if job not in known]

    def resume_halted(self) -> None:
        """Go on with jobs that an error of the store or of the engine itself has stopped in this process."""
        with self._changed:
            halted, self._halted = self._halted, set()
        for job in halted:
            DBOS.resume_workflow(job)

    def begin_anew(self, job: str, left: Callable[[], None]) -> None:
        """Have a job that is told to stop go on from its records once it has; `left` is called then.

        One that does not run in this process reads them anyway when it begins.
        """
        with self._changed:
            if job in self._running:
                self._anew[job] = left

    def tidy(self) -> None:
        """Forget all but the last finished workflows."""
        finished = DBOS.list_workflows(
            status=["SUCCESS", "ERROR"],
            sort_desc=True,
            offset=KEPT_WORKFLOWS,
            limit=KEPT_WORKFLOWS,
            load_input=False,
            load_output=False,
        )
        if finished:
            DBOS.delete_workflows([found.workflow_id for found in finished])

    def _take(self, job: str) -> None:
        with self._changed:
            self._running.add(job)
        try:
            self._run(job, once)
        except Stopped as stopped:
            if stopped.__cause__ is not None and not isinstance(stopped.__cause__, VmferryError):
                self._halt(job)
            raise
        except Exception as error:
            # An error here would end the workflow, and with it the job: leave it, and try again.
            log.exception("a workflow failed outside its steps", job=job)
            self._halt(job)
            raise Stopped from error
        finally:
            with self._changed:
                self._running.discard(job)
                left = self._anew.pop(job, None)
                if left is not None:
                    self._halted.add(job)
                self._changed.notify_all()
            if left is not None:
                left()

    def _halt(self, job: str) -> None:
        with self._changed:
            self._halted.add(job)


def once(name: str, act: Callable[[], Outcome]) -> Outcome:
    """Act and record how it ended, or answer from the record. What the act raises is never recorded."""

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
    """The workflow of every job."""
    if Engine._current is None:
        raise Stopped
    Engine._current._take(job)


def _config(database: Path) -> DBOSConfig:
    return {
        "name": "vmferry",
        "system_database_url": f"sqlite:///{database}",
        "application_version": APPLICATION_VERSION,
        "executor_id": EXECUTOR,
        "serializer": DBOSPortableJSONSerializer(),
        "enable_otlp": False,
        "log_level": "ERROR",
        "notification_listener_polling_interval_sec": 1.0,
    }
