"""Worker processes that are killed, frozen and woken at random while they run jobs on a world in a file."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
from tests.support.postgres import Cluster

from vmferry.errors import HostRefused, VmferryError, WorkerRunning
from vmferry.hosts.simulator.driver import InFile, Moment, SimulatedHosts, World
from vmferry.hosts.simulator.world import add_machine
from vmferry.manager.jobs import engine, failover
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.store import Store, leases
from vmferry.migration import saga
from vmferry.migration.saga import Once, Outcome
from vmferry.model import FINAL, JobState, MoveRequest, Power
from vmferry.process.state import ManagerIdentity

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["vmferry.manager.jobs.service", "vmferry.hosts.simulator.driver"]
)  # so that a new worker costs milliseconds, not a second of imports
Pipe = Connection

ALREADY_RUNNING = 75
ANSWER_S = 120.0
FOLDERS = (Path("/fast/vms"), Path("/slow/vms"))
VMS = 14
LEASE_S = 1.5
LEASE_POLL_S = 0.2
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


@dataclass(frozen=True)
class Post:
    """Where a worker works: alone in its folder, or as a manager among others on a database."""

    world: Path
    name: str
    records: str | None = None

    @property
    def folder(self) -> Path:
        return self.world / self.name

    def identity(self) -> ManagerIdentity:
        if self.records is None:
            return ManagerIdentity.at(self.folder)
        self.folder.mkdir(exist_ok=True)
        return ManagerIdentity.among(self.folder, self.world / "ground", self.records)


class Luck:
    """Fails and dies by chance; once told by a signal, fails at its next call for sure."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.unlucky = False

    def ordered(self, *_: object) -> None:
        self.unlucky = True

    def fail_sometimes(self, moment: Moment, _world: World) -> None:
        if moment.when != "middle" and (self.unlucky or self.chance.random() < FAILS):
            self.unlucky = False
            raise HostRefused(host="memory", action=moment.call, reason="it was unlucky")


def work(post: Post, seed: int, questions: Pipe) -> None:
    """The worker: answers one question after the other, until it is killed."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory((post.world / "worker.log").open("a")))
    luck = Luck(seed)
    signal.signal(signal.SIGUSR1, luck.ordered)
    saga.RETRY_S, leases.LEASE_S, failover.LEASE_POLL_S = 0.02, LEASE_S, LEASE_POLL_S
    vars(engine)["once"] = deadly(engine.once, luck.chance)
    identity = post.identity()
    jobs = Jobs(identity, SimulatedHosts(world_file(post.world), luck.fail_sometimes))
    try:
        jobs.start()
    except WorkerRunning:
        sys.exit(ALREADY_RUNNING)
    questions.send(identity.manager)
    while True:
        questions.send(answer(jobs, questions.recv(), luck.chance))


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

    def __init__(self, post: Post, seed: int) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=work, args=(post, seed, theirs))
        self._process.start()
        theirs.close()
        self.manager = self._answer()
        self.ready = isinstance(self.manager, str)

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

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

    freezes_at = 0.03
    acts = (3, 10)

    def __init__(self, posts: list[Post], seed: int, jobs: int) -> None:
        self.posts = posts
        self.chance = random.Random(seed)
        self.wanted = jobs
        self.submitted = 0
        self.kills = 0
        self.freezes = 0
        self.crew: dict[Post, Worker] = {}
        self._begun = 0
        make_world(posts[0].world)

    def torment(self) -> None:
        try:
            while self.submitted < self.wanted:
                self._man()
                for _ in range(self.chance.randint(*self.acts)):
                    if not self._do_something(self.chance.choice(self.posts)):
                        break
                self._kill(self.chance.choice(list(self.crew)))
            self._let_end()
        finally:
            for worker in self.crew.values():
                worker.kill()

    def freeze(self, post: Post, worker: Worker) -> None:
        """A second one for the same folder is kept out."""
        worker.signal(signal.SIGSTOP)
        second = Worker(post, 0)
        code = second.wait()
        assert not second.ready
        if code == ALREADY_RUNNING:
            self.freezes += 1
        worker.signal(signal.SIGCONT)

    def _man(self) -> None:
        """A living worker at each post; one may die before it is ready, and then is started again."""
        for post in self.posts:
            if post in self.crew and not self.crew[post].alive:
                self._kill(post)
            while post not in self.crew:
                self._begun += 1
                worker = Worker(post, self._begun)
                if worker.ready:
                    self.crew[post] = worker
                else:
                    assert worker.wait() != ALREADY_RUNNING
                    self.kills += 1

    def _kill(self, post: Post) -> None:
        self.kills += 1
        self.crew.pop(post).kill()

    def _do_something(self, post: Post) -> bool:
        """One question, or a freeze. False when the worker has died."""
        worker, dice = self.crew[post], self.chance.random()
        if dice < self.freezes_at:
            self.freeze(post, worker)
            return True
        if dice < 0.3:
            found = worker.ask("list")
            active = [id for id, _, state in found or [] if JobState(state) not in FINAL]
            return bool(found is not None and (not active or worker.ask("cancel", self.chance.choice(active))))
        time.sleep(self.chance.random() * 0.15)  # lets jobs get on, so that kills come at any point of them
        reply = worker.ask("submit", f"vm{self.chance.randrange(VMS)}")
        self.submitted += isinstance(reply, str)
        return reply is not None

    def _let_end(self) -> None:
        """Restart whatever dies until every job has ended; an operator retries what is stuck."""
        deadline = time.monotonic() + ANSWER_S * 3
        while time.monotonic() < deadline:
            self._man()
            post = self.chance.choice(self.posts)
            found = self.crew[post].ask("list")
            if found is None:
                self._kill(post)
                continue
            if isinstance(found, list) and all(JobState(state) in FINAL for _, _, state in found):
                return
            for id, _, state in found if isinstance(found, list) else []:
                if state == JobState.STUCK:
                    self.crew[post].ask("retry", id)
            time.sleep(0.1)
        raise AssertionError("the jobs do not end")


class ManagersTormentor(Tormentor):
    """Of several managers: each takes over from those that are killed or frozen; their database crashes once."""

    freezes_at = 0.1
    acts = (6, 20)

    def __init__(self, posts: list[Post], seed: int, jobs: int, server: Cluster) -> None:
        super().__init__(posts, seed, jobs)
        self._server = server
        self.restarts = 0
        self._records = Store(str(posts[0].records), "an onlooker", "nowhere")

    def _kill(self, post: Post) -> None:
        super()._kill(post)
        if not self.restarts and self.submitted > self.wanted / 2:
            self._server.restart()
            self.restarts += 1

    def freeze(self, post: Post, worker: Worker) -> None:
        """The busiest one, until others have its jobs; then its next step fails, if it comes to one."""
        post, worker = max(self.crew.items(), key=lambda manned: self._jobs_of(manned[1]))
        if not self._jobs_of(worker) or not self._stop_outside_the_world(post, worker):
            return
        try:
            deadline = time.monotonic() + ANSWER_S
            while self._jobs_of(worker):
                assert time.monotonic() < deadline, f"nobody takes over from {worker.manager}"
                self._man()  # the others may have died meanwhile
                time.sleep(0.05)
            self.freezes += 1
            worker.signal(signal.SIGUSR1)
        finally:
            worker.signal(signal.SIGCONT)

    def _stop_outside_the_world(self, post: Post, worker: Worker) -> bool:
        """Stopped in a call of the toy host it would hold the toy's lock, and no other could act there."""
        with (post.world / "world.lock").open("a") as lock:
            for _ in range(100):
                worker.signal(signal.SIGSTOP)
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                worker.signal(signal.SIGCONT)
                time.sleep(0.01)
        return False

    def _jobs_of(self, worker: Worker) -> int:
        return Counter(pulse.manager for pulse in self._records.pulses())[worker.manager]
