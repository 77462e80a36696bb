"""Worlds and benches for the saga's tests: one VM with two disks, a walk without an engine, and cuts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

from tests.support.borders import bordered

from vmferry import preflight
from vmferry.errors import Cancelled
from vmferry.hosts.interface import Host
from vmferry.hosts.records import Quiesced
from vmferry.hosts.simulator.driver import Hook, InMemory, Killed, Moment, SimulatedHost, World
from vmferry.hosts.simulator.world import File, Machine, add_machine
from vmferry.migration.facts import Fact, JobFacts
from vmferry.migration.saga import Outcome, walk
from vmferry.migration.steps.step import Job, Step
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import (
    ALLOWED,
    OTHER_HOST,
    DiskProgress,
    FencingToken,
    JobState,
    MoveRequest,
    Phase,
    Plan,
    Power,
    Technology,
)
from vmferry.transfer import Throttle

UUID = "6f1c3a52-0000-4000-8000-000000000001"
SOURCE, DESTINATION, OVERLAYS = Path("/fast/vms"), Path("/slow/vms"), Path("/other/overlays")
FAR = "far"
"""The other host of a relocation."""
LUNS = {"from": Path("/dev/lun0"), "to": Path("/dev/lun1")}
MOST_CUTS = 3


@dataclass(frozen=True)
class Scenario:
    technology: Technology
    power: Power
    persistent: bool = True
    rounds: int = 0
    """How many times the rest is too large to be cut over."""
    keep_source: bool = False
    quiesces: Quiesced | None = None
    """What the guest agent does, where there is one."""
    volumes: frozenset[str] = frozenset()
    """Where the first disk is a device: at the source, at the destination."""
    checkpoints: bool = False
    """libvirt has a checkpoint of it, whose bitmap does not go along with a disk that is copied by content."""
    nvram: bool = False
    """The VM has a file of firmware variables, a snapshot, and is started with its host."""

    @property
    def relocates(self) -> bool:
        return self.technology in OTHER_HOST

    def __str__(self) -> str:
        words = [self.technology.value.replace(" ", "-"), self.power.value]
        words += ["transient"] if not self.persistent else []
        words += [f"{self.rounds}-rounds"] if self.rounds else []
        words += ["keep"] if self.keep_source else []
        words += [f"quiesced-{self.quiesces.value}"] if self.quiesces else []
        words += [f"{end}-a-volume" for end in sorted(self.volumes)]
        words += ["checkpoints"] if self.checkpoints else []
        return "-".join(words)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process leaves the same there as on a disk."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="vmferry-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def make_world(
    power: Power = Power.RUNNING, *, persistent: bool = True, volumes: frozenset[str] = frozenset()
) -> World:
    """A VM with a raw disk and a qcow2 one on a base; and devices of other contents, if asked for."""
    world = World(volumes={LUNS[end] for end in volumes})
    for path in world.volumes:
        world.files[path] = File({1: -1, 2: -2})
    disks = {
        "vda": ((LUNS["from"] if "from" in volumes else SOURCE / "guest-a.img", "raw"),),
        "vdb": ((SOURCE / "guest-b.qcow2", "qcow2"), (SOURCE / "guest-b-base.qcow2", "qcow2")),
    }
    add_machine(world, "guest", UUID, disks, power, persistent=persistent)
    far = world.add_peer(FAR)
    add_machine(far, "neighbour", UUID.replace("1", "2"), {"vda": ((DESTINATION / "other.img", "raw"),)})
    return world


def dress(world: World) -> None:
    """Give the VM what a relocation has to take along."""
    machine = world.machine(UUID)
    machine.nvram, machine.autostart = SOURCE / "guest.nvram", True
    world.files[machine.nvram] = File({0: 7})
    machine.snapshots = {"before": {"vda": SOURCE / "guest-a.img"}}


def make_plan(world: World, scenario: Scenario) -> Plan:
    request = MoveRequest(
        "guest",
        "memory",
        path=DESTINATION,
        disks={"vda": LUNS["to"]} if "to" in scenario.volumes else {},
        overlays=OVERLAYS if len(scenario.volumes) == 2 else None,
        via=scenario.technology.value.split()[0],
        to=FAR if scenario.relocates else None,
        keep_source=scenario.keep_source,
        overwrite=bool(scenario.volumes),
    )
    ground = InMemory(world)
    host = SimulatedHost(ground)
    plan = preflight.plan(request, host, SimulatedHost(ground, name=FAR) if scenario.relocates else host, {})
    assert not plan.blockers, plan.blockers
    assert plan.technology is scenario.technology
    return plan


@dataclass
class Bench:
    """A job on a toy world, walked again after each cut with the records that it left."""

    scenario: Scenario
    hook: Hook | None = None
    cancel_at: int | None = None
    """The step in which a cancel is heard."""
    cut_record: tuple[int, Literal["before", "after"]] | None = None
    job_id: str = "abcd2345"
    memo: dict[str, Outcome] = field(default_factory=dict)
    known: dict[str, Fact] = field(default_factory=dict)
    states: list[JobState] = field(default_factory=lambda: [JobState.QUEUED, JobState.RUNNING])
    stuck: list[str] = field(default_factory=list)
    acts: list[tuple[str, str, int, int]] = field(default_factory=list)
    """(do or undo, step, its number, the world's calls when it began)"""
    heard: Callable[[str], None] = lambda _: None
    """Told what it waits for."""
    cancelled: bool = False
    looks: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        self.world = make_world(self.scenario.power, persistent=self.scenario.persistent, volumes=self.scenario.volumes)
        if self.scenario.nvram:
            dress(self.world)
        machine = self.world.machine(UUID)
        if self.scenario.checkpoints:
            machine.checkpoints, machine.bitmaps = ["cp1"], {"cp1"}
        machine.agent, machine.slow_thaws = self.scenario.quiesces is not None, 2
        machine.quiesces = self.scenario.quiesces or Quiesced.NO
        self.plan = make_plan(self.world, self.scenario)
        self._records = count()

    def run(self) -> JobState:
        """Walk until it ends, however often it is cut."""
        for _ in range(MOST_CUTS):
            try:
                return self._walk()
            except Killed:
                continue
        raise AssertionError("cut too often")

    def _walk(self) -> JobState:
        self.epoch += 1
        ground, token = InMemory(self.world), FencingToken(self.job_id, self.epoch)
        host: Host = SimulatedHost(ground, token, self.hook)
        there = host
        if self.scenario.relocates:
            host = bordered(SimulatedHost(ground, token, self.hook), DESTINATION, self.world.violations)
            there = bordered(SimulatedHost(ground, token, self.hook, name=FAR), SOURCE, self.world.violations)
        job = Job(self.job_id, self.plan, host, there, JobFacts(Facts(self.known)), BenchDesk(self), Path("/state"))
        return walk(STRATEGIES[self.plan.technology], job, self, self.once)

    def once(self, name: str, act: Callable[[], Outcome]) -> Outcome:
        if name not in self.memo:
            outcome = act()
            number = next(self._records)
            if self.cut_record == (number, "before"):
                raise Killed
            self.memo[name] = outcome
            if self.cut_record == (number, "after"):
                raise Killed
        return self.memo[name]

    # -- the ledger

    def begun(self, act: Literal["do", "undo"], step: Step, number: int) -> None:
        self.acts.append((act, step.name, number, self.world.calls))
        if act == "do" and number == self.cancel_at:
            self.cancelled = True

    def ended(self, act: Literal["do", "undo"], step: Step, number: int, outcome: Outcome) -> None:
        pass

    def state(self, state: JobState, why: str = "", kind: str = "") -> None:
        if self.states[-1] is not state:
            assert (self.states[-1], state) in ALLOWED, (self.states, state)
            self.states.append(state)
        if state is JobState.STUCK:
            self.stuck.append(why)

    def wait_for_retry(self) -> None:
        assert len(self.stuck) < 3, self.stuck


@dataclass
class Facts:
    known: dict[str, Fact]

    def get(self, name: str) -> Fact:
        return self.known.get(name)

    def put(self, name: str, value: Fact) -> None:
        self.known[name] = value

    def all(self) -> dict[str, Fact]:
        return self.known


@dataclass
class BenchDesk:
    bench: Bench
    hears: bool = True
    throttle: Throttle = field(default_factory=Throttle)

    @property
    def max_pause_s(self) -> float:
        """Too short for the first rounds, then long enough, as if somebody had raised it."""
        self.bench.looks += 1
        return 0.1 if self.bench.looks <= 2 * self.bench.scenario.rounds else 1000.0

    def check(self) -> None:
        if self.hears and self.bench.cancelled:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        self.check()

    def disk(self, progress: DiskProgress, rate_bytes_s: float) -> None:
        pass

    def says(self, now: str) -> None:
        pass

    def waits(self, why: str) -> None:
        self.bench.heard(why)

    def forecast(self, pause_s: float) -> None:
        pass

    def phase(self, phase: Phase) -> None:
        pass

    def state(self, state: JobState, why: str = "") -> None:
        self.bench.state(state, why)

    @property
    def suspended(self) -> bool:
        return False

    def suspendable(self) -> BenchDesk:
        return self

    def uncancellable(self) -> BenchDesk:
        return replace(self, hears=False)


def broken(bench: Bench, end: JobState, *, qemu_died: bool = False) -> list[str]:
    """Every promise that the world shows broken, now that the job has ended."""
    world, plan = bench.world, bench.plan
    world.check()
    found = list(world.violations)
    far = world.at(FAR) if plan.relocates else world
    for host in (world, world.at(FAR)):
        found += [f"{path} is left over" for path in host.files if "vmferry-" in str(path)]
        found += [f"the bookmarks {path} are left over" for path in host.bookmarks]
    found += [f"{url} is still served" for url in world.served]
    found += [f"{job} may still come in" for job in far.receiving]
    moved = end is JobState.DONE
    for image in plan.images:
        gone, there = (image.source, image.destination) if moved else (image.destination, image.source)
        left, here = (world, far) if moved else (far, world)
        found += [f"{gone} is still there"] if gone in left.files and gone not in left.volumes else []
        found += [f"{there} is not there"] if there not in here.files else []
    if plan.relocates and plan.uuid in (world if moved else far).machines:
        found.append("the VM is known on both hosts")
    found += _neighbour(world)
    world = far if moved else world
    machine = world.machines.get(bench.plan.uuid)
    if machine is None:
        return found if qemu_died and not plan.persistent else [*found, "the VM is gone"]
    return found + _broken_vm(bench, machine, moved=moved, qemu_died=qemu_died)


def _broken_vm(bench: Bench, machine: Machine, *, moved: bool, qemu_died: bool) -> list[str]:
    plan, found = bench.plan, []
    if machine.halted:
        found.append("its file systems are frozen")
    if machine.agent and plan.power is Power.RUNNING and machine.live is not None and machine.behind_s:
        found.append("its clock is behind")
    wanted = {disk.target: disk.to if moved else disk.from_ for disk in plan.disks}
    if machine.disks != wanted:
        found.append(f"it is on {machine.disks}")
    if machine.definition is not None and machine.definition != wanted:
        found.append(f"its definition says {machine.definition}")
    if machine.live is not None and (machine.live.mirrors or machine.live.loaded):
        found.append("a mirror or a restore is left over")
    kept = ["cp1"] if bench.scenario.checkpoints and not moved else []
    if machine.checkpoints != kept or machine.bitmaps != set(kept):
        found.append(f"its checkpoints are {machine.checkpoints}, of their bitmaps there are {machine.bitmaps}")
    if bench.scenario.nvram:
        found += _dressed(bench, machine, moved=moved)
    if not qemu_died and machine.power is not plan.power:
        found.append(f"it was {plan.power.value} and is {machine.power.value}")
    if not qemu_died and (machine.definition is not None) is not plan.persistent:
        found.append("it was transient and is persistent, or the other way round")
    return found


def _dressed(bench: Bench, machine: Machine, *, moved: bool) -> list[str]:
    """Firmware variables, snapshots and autostart are where the VM is."""
    folder, files = (DESTINATION, bench.world.at(FAR).files) if moved else (SOURCE, bench.world.files)
    found = [] if machine.nvram == folder / "guest.nvram" else [f"its firmware variables are {machine.nvram}"]
    if folder / "guest.nvram" not in files or files[folder / "guest.nvram"].blocks != {0: 7}:
        found.append("its firmware variables are lost")
    if machine.snapshots != {"before": {"vda": folder / "guest-a.img"}}:
        found.append(f"its snapshots are {machine.snapshots}")
    return found + ([] if machine.autostart else ["it is no longer started with its host"])


def _neighbour(world: World) -> list[str]:
    """Another VM of the other host, which nobody named."""
    neighbour = world.at(FAR).machine("neighbour")
    found = [] if neighbour.power is Power.RUNNING else ["the neighbour was stopped"]
    return found + ([] if neighbour.disks["vda"].path == DESTINATION / "other.img" else ["its disk was moved"])


def at(number: int, when: str, do: Callable[[World], None]) -> Hook:
    """Do something at one moment, once."""
    done: list[bool] = []

    def hook(moment: Moment, world: World) -> None:
        if (moment.number, moment.when) == (number, when) and not done:
            done.append(True)
            do(world)

    return hook


def kill(_world: World) -> None:
    raise Killed
