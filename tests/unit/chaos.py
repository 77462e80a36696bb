"""A worker process that is killed, frozen and woken at random while it runs jobs on a world in a file."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog

from vmferry import engine, saga
from vmferry.errors import HostRefused, VmferryError, WorkerRunning
from vmferry.hosts.memory import InFile, MemoryHosts, Moment, World
from vmferry.hosts.memory_world import add_machine
from vmferry.jobs import Jobs
from vmferry.model import FINAL, JobState, MoveRequest, Power
from vmferry.saga import Once, Outcome

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["vmferry.jobs", "vmferry.hosts.memory"]
)  # so that a new worker costs milliseconds, not a second of imports
Pipe = Connection

ALREADY_RUNNING = 75
ANSWER_S = 120.0
FOLDERS = (Path("/fast/vms"), Path("/slow/vms"))
VMS = 14
FAILS = 1 / 400
DIES = 1 / 60


def world_file(folder: Path) -> InFile:
    return InFile(folder / "world")


def make_world(folder: Path) -> None:
    with world_file(folder).here() as world:
        for number in range(VMS):
            disks = {
                "vda": ((FOLDERS[0] / f"vm{number}-a.img", "raw"),),
                "vdb": ((FOLDERS[0] / f"vm{number}-b.qcow2", "qcow2"),),
            }
            power = Power.OFF if number % 7 == 6 else Power.RUNNING
            persistent = number % 5 != 4 or power is Power.OFF
            add_machine(world, f"vm{number}", f"uuid-{number}", disks, power, persistent=persistent)


# -- the worker


def work(folder: Path, seed: int, questions: Pipe) -> None:
    """The worker: answers one question after the other, until it is killed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory((folder / "worker.log").open("a")))
    chance = random.Random(seed)
    saga.RETRY_S = 0.02
    vars(engine)["once"] = deadly(engine.once, chance)

    def fail_sometimes(moment: Moment, _world: World) -> None:
        if moment.when != "middle" and chance.random() < FAILS:
            raise HostRefused(host="memory", action=moment.call, reason="it was unlucky")

    jobs = Jobs(folder / "state", MemoryHosts(world_file(folder), fail_sometimes))
    try:
        jobs.start()
    except WorkerRunning:
        sys.exit(ALREADY_RUNNING)
    questions.send("ready")
    while True:
        questions.send(answer(jobs, questions.recv(), chance))


def deadly(once: Once, chance: random.Random) -> Once:
    """Sometimes die between the end of an act and its record: of the last ones, and while undoing, often."""

    def dying(name: str, act: Callable[[], Outcome]) -> Outcome:
        def act_and_die() -> Outcome:
            outcome = act()
            often = 4 if name.startswith(("state", "undo")) else 1
            if chance.random() < DIES * often:
                os.kill(os.getpid(), signal.SIGKILL)
            return outcome

        return once(name, act_and_die)

    return dying


def answer(jobs: Jobs, question: tuple[Any, ...], chance: random.Random) -> Any:
    verb, *given = question
    try:
        if verb == "submit":
            return jobs.submit(_request(jobs, given[0], chance)).id
        if verb == "cancel":
            return jobs.cancel(given[0]).id
        if verb == "retry":
            return jobs.retry(given[0]).id
    except VmferryError as error:
        return {"refused": type(error).__name__, "sentence": str(error)}
    return [[view.id, view.plan.vm, view.state.value] for view in jobs.list()]


def _request(jobs: Jobs, vm: str, chance: random.Random) -> MoveRequest:
    at = Path(str(jobs._hosts.open("memory").vm(vm).disks[0].active.path)).parent
    to = FOLDERS[1 - FOLDERS.index(at)] if at in FOLDERS else FOLDERS[0]
    via = chance.choice(["auto", "quick"]) if not vm.endswith(("6", "13")) else "auto"
    return MoveRequest(vm, "memory", path=to, via=via, max_pause_s=60.0)


# -- the tormentor


class Worker:
    """The process, seen from outside."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=work, args=(folder, seed, theirs))
        self._process.start()
        theirs.close()
        self.ready = self._answer() == "ready"

    def ask(self, *question: object) -> Any:
        """The answer; None when it died instead."""
        try:
            self._pipe.send(question)
        except OSError:
            return None
        return self._answer()

    def signal(self, number: signal.Signals) -> None:
        if self._process.pid is not None:
            with suppress(ProcessLookupError):  # it has died meanwhile, and its parent has reaped it
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int | None:
        self._process.join(ANSWER_S)
        self._pipe.close()
        return self._process.exitcode

    def _answer(self) -> Any:
        assert self._pipe.poll(ANSWER_S), "the worker does not answer"
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return None


class Tormentor:
    """Submits, cancels, kills and freezes until so many jobs were submitted, then lets them end."""

    def __init__(self, folder: Path, seed: int, jobs: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._wanted = jobs
        self._begun = 0
        self.submitted = 0
        self.kills = 0
        self.freezes = 0
        make_world(folder)

    def torment(self) -> None:
        while self.submitted < self._wanted:
            worker = self._start()
            for _ in range(self._chance.randint(3, 10)):
                if not self._do_something(worker):
                    break
            self.kills += 1
            worker.kill()
        self._let_end()

    def _start(self) -> Worker:
        """A worker that may die before it is ready, and then is started again."""
        while True:
            self._begun += 1
            worker = Worker(self._folder, self._begun)
            if worker.ready:
                return worker
            assert worker.wait() != ALREADY_RUNNING
            self.kills += 1

    def _do_something(self, worker: Worker) -> bool:
        """One question, or a freeze. False when the worker has died."""
        dice = self._chance.random()
        if dice < 0.03:
            self._freeze(worker)
            return True
        if dice < 0.3:
            found = worker.ask("list")
            active = [id for id, _, state in found or [] if JobState(state) not in FINAL]
            return bool(found is not None and (not active or worker.ask("cancel", self._chance.choice(active))))
        time.sleep(self._chance.random() * 0.15)  # lets jobs get on, so that kills come at any point of them
        reply = worker.ask("submit", f"vm{self._chance.randrange(VMS)}")
        self.submitted += isinstance(reply, str)
        return reply is not None

    def _freeze(self, worker: Worker) -> None:
        worker.signal(signal.SIGSTOP)
        second = Worker(self._folder, 0)
        code = second.wait()
        assert not second.ready
        if code == ALREADY_RUNNING:
            self.freezes += 1
        worker.signal(signal.SIGCONT)

    def _let_end(self) -> None:
        """Restart whatever dies until every job has ended; an operator retries what is stuck."""
        deadline = time.monotonic() + ANSWER_S * 3
        worker = self._start()
        while time.monotonic() < deadline:
            found = worker.ask("list")
            if found is None:
                worker.kill()
                self.kills += 1
                worker = self._start()
                continue
            if all(JobState(state) in FINAL for _, _, state in found):
                worker.kill()
                return
            for id, _, state in found:
                if state == JobState.STUCK:
                    worker.ask("retry", id)
            time.sleep(0.1)
        raise AssertionError("the jobs do not end")
