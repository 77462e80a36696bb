"""Jobs of simulated hosts, run by a real worker in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.worlds import DESTINATION, SOURCE, UUID

from vmferry.hosts.interface import Host
from vmferry.hosts.simulator.driver import Hook, InMemory, SimulatedHost, SimulatedHosts, World
from vmferry.hosts.simulator.world import add_machine
from vmferry.manager.jobs.service import Jobs
from vmferry.migration.saga import Strategy
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import (
    FINAL,
    FencingToken,
    JobView,
    MoveRequest,
    Power,
    Technology,
)

DEADLINE_S = 60.0


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


def world_of(count: int, power: Power = Power.RUNNING) -> World:
    world = World()
    for number in range(count):
        disk = {"vda": ((SOURCE / f"vm{number}.img", "raw"),)}
        add_machine(world, f"vm{number}", UUID[:-4] + f"{number:04}", disk, power)
    return world


def request(number: int = 0, **given: object) -> MoveRequest:
    return replace(MoveRequest(f"vm{number}", "memory", path=DESTINATION, max_pause_s=60.0), **given)  # type: ignore[arg-type]


class Gate:
    """Holds every such call of a job until it is opened."""

    def __init__(self, call: str = "copy") -> None:
        self.call = call
        self.open = threading.Event()
        self.reached = threading.Event()


class HeldHost(SimulatedHost):
    gate: Gate

    def _act(self, call: str) -> AbstractContextManager[tuple[World, Callable[[], None]]]:
        if call == self.gate.call:
            self.gate.reached.set()
            assert self.gate.open.wait(DEADLINE_S)
        return super()._act(call)


class HeldHosts:
    """Hosts whose acting calls meet a gate."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._ground = InMemory(world)
        self._gate = gate

    def open(self, connect: str, token: FencingToken | None = None) -> Host:
        host = HeldHost(self._ground, token)
        host.gate = self._gate
        return host


@contextmanager
def worker(
    state: Path,
    world: World,
    hook: Hook | Gate | None = None,
    strategies: Callable[[Technology], Strategy] = STRATEGIES.__getitem__,
) -> Iterator[Jobs]:
    hosts = HeldHosts(world, hook) if isinstance(hook, Gate) else SimulatedHosts(InMemory(world), hook)
    jobs = Jobs(state, hosts, strategies)
    jobs.start()
    try:
        yield jobs
    finally:
        if isinstance(hook, Gate):
            hook.open.set()
        jobs.close()


def ended(jobs: Jobs, id: str) -> JobView:
    until(lambda: jobs.get(id).state in FINAL)
    return jobs.get(id)
