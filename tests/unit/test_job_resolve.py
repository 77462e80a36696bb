"""A host of a relocation is lost for good at any call, and an operator says where the VM is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.support.jobs import until
from tests.support.worlds import DESTINATION, FAR, UUID, Bench, BenchDesk, Facts, Scenario, make_world, quick_folder

from vmferry.errors import HostLost, HostRefused, HostUnreachable, NotResolvable, Superseded, UsageError, WrongState
from vmferry.hosts.interface import Host
from vmferry.hosts.lost import LEFT, NOT_THERE, LostHost
from vmferry.hosts.simulator.driver import InMemory, Killed, SimulatedHost, World
from vmferry.hosts.wire import CALLS
from vmferry.manager.jobs.resolve import Resolution
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.store import Row
from vmferry.manager.store.codec import dump
from vmferry.migration.facts import JobFacts
from vmferry.migration.saga import Outcome, walk
from vmferry.migration.steps.saved_state import first_images
from vmferry.migration.steps.step import Job, Step
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import (
    FINAL,
    Changes,
    Definition,
    FencingToken,
    JobState,
    JobView,
    Lost,
    MoveRequest,
    Power,
    StepRecord,
    Technology,
    checksum,
)

NEAR = "memory"
SCENARIOS = [
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, nvram=True),
    Scenario(Technology.LIVE_RELOCATION, Power.RUNNING, keep_source=True),
    Scenario(Technology.QUICK_RELOCATION, Power.RUNNING, rounds=1, nvram=True),
    Scenario(Technology.LAN, Power.OFF, nvram=True),
]
When = Literal["before", "middle", "after"]


@dataclass
class Cut:
    """Where a host goes out of reach: in its how-manieth call, and where in that."""

    host: str
    call: int = -1
    when: When = "before"
    calls: int = 0
    away: bool = False
    within: list[tuple[int, When]] = field(default_factory=list)

    def meet(self, host: str, when: When) -> None:
        if host != self.host:
            return
        self.calls += when == "before"
        self.within.append((self.calls, when))
        self.away = self.away or (self.calls, when) == (self.call, self.when)
        if self.away:
            raise HostUnreachable(host=host, reason="no route to host")


class MortalHost(SimulatedHost):
    cut: Cut

    @contextmanager
    def _look(self, call: str) -> Iterator[World]:
        self.cut.meet(self.name, "before")
        with super()._look(call) as world:
            yield world

    def _act(self, call: str) -> AbstractContextManager[tuple[World, Callable[[], None]]]:
        return self._cut_acting(call)

    @contextmanager
    def _cut_acting(self, call: str) -> Iterator[tuple[World, Callable[[], None]]]:
        self.cut.meet(self.name, "before")
        with super()._act(call) as (world, middle):

            def cut_middle() -> None:
                middle()
                self.cut.meet(self.name, "middle")

            yield world, cut_middle
        self.cut.meet(self.name, "after")


@dataclass
class LossBench(Bench):
    """Its walk stands still as soon as it has to wait for a host."""

    cut: Cut = field(default_factory=lambda: Cut(FAR))
    journal: list[StepRecord] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    left: set[Path] = field(default_factory=set)
    mend: Callable[[], None] = lambda: None
    """What an operator does about a stuck job."""

    def wait_for_retry(self) -> None:
        self.mend()

    def _walk(self) -> JobState:
        self.epoch += 1
        control = LossDesk(self)
        job = Job(
            self.job_id,
            self.plan,
            self.host(NEAR),
            self.host(FAR),
            JobFacts(Facts(self.known)),
            control,
            Path("/state"),
        )
        return walk(STRATEGIES[self.plan.technology], job, self, self.once)

    def host(self, name: str) -> Host:
        lost = {None: "", Lost.SOURCE: NEAR, Lost.DESTINATION: FAR}[self.lost]
        if name == lost:
            return LostHost(name, self.left.add)
        host = MortalHost(InMemory(self.world), FencingToken(self.job_id, self.epoch), name=name)
        host.cut = self.cut
        return host

    @property
    def lost(self) -> Lost | None:
        said = self.known.get("lost")
        return Lost(said) if isinstance(said, str) else None

    def ended(self, act: Literal["do", "undo"], step: Step, number: int, outcome: Outcome) -> None:
        self.journal.append(StepRecord(act, number, step.name, step.says, "", "", ok=outcome["ok"]))

    def waits(self) -> bool:
        """Walk; False when it came to its end."""
        try:
            self._walk()
        except Killed:
            return True
        return False

    def resolve(self) -> None:
        """The operator switches the lost host off, then says so. Raises NotResolvable."""
        lost = Lost.DESTINATION if self.cut.host == FAR else Lost.SOURCE
        arrived = SimulatedHost(InMemory(self.world), name=FAR).arrived(UUID)
        begun = [StepRecord(act, number, step, "", "") for act, step, number, _ in self.acts]
        resolution = Resolution(self.job_id, self.plan, lost, arrived)
        resolution.judge(_row(self.states[-1]), (*begun, *self.journal), self.known)
        self.known["lost"] = lost.value
        self.switch_off(self.world.at(self.cut.host))

    def switch_off(self, world: World) -> None:
        machine = world.machines.get(UUID)
        if machine is None:
            return
        ran_away = self.cut.host == FAR and not machine.placeholder
        ran_away = ran_away or (machine.live is not None and machine.power is Power.RUNNING and self.cut.host == FAR)
        machine.live = None
        if ran_away and self.plan.power is not Power.OFF:
            self._forget_since_cut_over()
        if machine.definition is None or ran_away:
            del world.machines[UUID]  # its disks are gone with the host

    def _forget_since_cut_over(self) -> None:
        """What the guest was promised on a host that is lost is lost with it."""
        job = Job(
            self.job_id,
            self.plan,
            self.host(NEAR),
            self.host(FAR),
            JobFacts(Facts(self.known)),
            LossDesk(self),
            Path("/"),
        )
        for target, image in first_images(job).items():
            self.world.acknowledged[UUID, target] = dict(self.world.content(image.path))


class LossDesk(BenchDesk):
    def says(self, now: str) -> None:
        assert isinstance(self.bench, LossBench)
        self.bench.said.append(now)

    def waits(self, why: str) -> None:
        self.says(why)

    def wait(self, seconds: float) -> None:
        assert isinstance(self.bench, LossBench)
        if self.bench.cut.away and self.bench.lost is None:
            raise Killed
        self.check()


def _row(state: JobState) -> Row:
    given = dict.fromkeys(Row.__slots__) | {"id": "abcd2345", "state": state}
    return Row(**given)  # type: ignore[arg-type]


def cuts(scenario: Scenario, host: str) -> list[tuple[int, When]]:
    bench = LossBench(scenario, cut=Cut(host))
    assert bench.waits() is False
    every = 1 if os.environ.get("VMFERRY_EVERY") else 3
    return bench.cut.within[::every]


def lost_at(scenario: Scenario, host: str, call: int, when: When) -> LossBench | None:
    """The bench, waiting for a host that is away; None when the job ended without it."""
    bench = LossBench(scenario, cut=Cut(host, call, when))
    return bench if bench.waits() else None


def kept(bench: LossBench, at: str) -> list[str]:
    """What is broken, now that the VM is at that host and the other one is gone."""
    bench.world.check()
    world, plan = bench.world.at(at), bench.plan
    found = list(bench.world.violations)
    machine = world.machines.get(UUID)
    if machine is None or not machine.able:
        return [*found, f"the VM cannot run on {at}"]
    wanted = {disk.target: disk.to if at == FAR else disk.from_ for disk in plan.disks}
    found += [f"it is on {machine.disks}"] if machine.disks != wanted else []
    found += [f"{path} is left over" for path in world.files if "vmferry-" in str(path)]
    found += [f"the bookmarks {path} are left over" for path in world.bookmarks]
    other = bench.world.at(bench.cut.host).machines.get(UUID)
    return found + (["it could run on the lost host, were that back"] if other is not None and other.able else [])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_without_its_destination_a_job_is_undone_from_any_call_on(scenario: Scenario) -> None:
    """Also past the point of no return: then as of the cut-over, since nothing newer is left."""
    resolved = 0
    for call, when in cuts(scenario, FAR):
        bench = lost_at(scenario, FAR, call, when)
        if bench is None:
            continue
        assert f"`vmferry job resolve abcd2345 --vm-is-at {NEAR}`" in bench.said[-1]
        assert "since 20" in bench.said[-1]
        try:
            bench.resolve()
        except NotResolvable as refused:
            assert "is being removed" in str(refused)
            assert any(step == "Retire" for _, step, _, _ in bench.acts), (call, when)
            continue
        assert bench._walk() is JobState.UNDONE, (call, when)
        assert kept(bench, NEAR) == [], (call, when)
        resolved += 1
    assert resolved > 20


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_without_its_source_a_job_goes_on_once_all_of_the_vm_is_at_the_destination(scenario: Scenario) -> None:
    resolved = refused = 0
    for call, when in cuts(scenario, NEAR):
        bench = lost_at(scenario, NEAR, call, when)
        if bench is None:
            continue
        assert f"--vm-is-at {FAR}" in bench.said[-1]
        try:
            bench.resolve()
        except NotResolvable:
            refused += 1
            assert bench.known.get("lost") is None
            continue
        assert bench._walk() is JobState.DONE, (call, when)
        assert kept(bench, FAR) == [], (call, when)
        resolved += 1
    assert refused > 5
    assert resolved > 3


def test_what_may_lie_on_the_lost_host_is_noted() -> None:
    bench = resolved_after_relinquishing(SCENARIOS[0])
    assert bench._walk() is JobState.DONE
    assert {image.source for image in bench.plan.images} <= bench.left
    assert any(path.name.endswith(".vmferry-abcd2345.r0.qcow2") for path in bench.left)


def test_without_its_source_a_job_that_fails_waits_for_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo would drop the only copy that is left."""
    bench = resolved_after_relinquishing(SCENARIOS[3])
    adopt, broken = MortalHost.adopt, [True]

    def refused(self: MortalHost, definition: Definition, changes: Changes) -> None:
        if broken:
            raise HostRefused(host=FAR, action="define the VM", reason="on fire")
        adopt(self, definition, changes)

    monkeypatch.setattr(MortalHost, "adopt", refused)
    bench.mend = broken.clear
    assert bench._walk() is JobState.DONE
    assert ["on fire" in sentence for sentence in bench.stuck] == [True]
    assert kept(bench, FAR) == []


def test_a_guest_that_dies_standing_after_its_source_was_lost_is_defined_and_off() -> None:
    bench = resolved_after_relinquishing(SCENARIOS[0])
    bench.world.at(FAR).kill_qemu(UUID)
    assert bench._walk() is JobState.DONE
    assert bench.stuck == []
    assert kept(bench, FAR) == []
    assert bench.world.at(FAR).machine(UUID).power is Power.OFF


def resolved_after_relinquishing(scenario: Scenario) -> LossBench:
    """A job that lost its source as soon as that could be resolved."""
    whole = LossBench(scenario, cut=Cut(NEAR))
    assert whole.waits() is False
    for call, when in whole.cut.within:
        bench = lost_at(scenario, NEAR, call, when)
        if bench is None or not any(r.step == "Relinquish" and r.ok for r in bench.journal):
            continue
        with suppress(NotResolvable):
            bench.resolve()
            return bench
    raise AssertionError("the source is not asked after it gave the VM up")


def test_a_lost_host_answers_only_what_undo_and_retire_ask() -> None:
    left: list[Path] = []
    host = LostHost("burnt", left.append)
    host.remove(Path("/fast/a.vmferry-abcd2345.r0.qcow2"))
    assert left == [Path("/fast/a.vmferry-abcd2345.r0.qcow2")]
    assert host.exists(Path("/fast/b")) is False
    for name in CALLS.keys() - NOT_THERE.keys() - LEFT - {"vm", "definition"}:
        with pytest.raises(HostLost, match="burnt was declared lost"):
            host.forward(name, **dict.fromkeys(CALLS[name].signature.parameters.keys() - {"self"}))


# -- through the worker


class Fleet:
    """Two toy hosts, of which one can go away; opened by name."""

    def __init__(self, world: World) -> None:
        self.kept_world = InMemory(world)
        self.away: set[str] = set()
        self.meets: Callable[[str, str], None] = lambda host, call: None

    def open(self, connect: str, token: FencingToken | None = None) -> Host:
        host = FleetHost(self.kept_world, token, name=connect)
        host.fleet = self
        return host

    def ask(self, host: str, call: str) -> None:
        self.meets(host, call)
        if host in self.away:
            raise HostUnreachable(host=host, reason="no route to host")


class FleetHost(SimulatedHost):
    fleet: Fleet

    @contextmanager
    def _look(self, call: str) -> Iterator[World]:
        self.fleet.ask(self.name, call)
        with super()._look(call) as world:
            yield world

    def _act(self, call: str) -> AbstractContextManager[tuple[World, Callable[[], None]]]:
        self.fleet.ask(self.name, call)
        return super()._act(call)


QUICK = MoveRequest("guest", NEAR, path=DESTINATION, via="quick", max_pause_s=60.0, to=FAR)


@contextmanager
def worker(state: Path, fleet: Fleet) -> Iterator[Jobs]:
    jobs = Jobs(state, fleet)
    jobs.start()
    try:
        yield jobs
    finally:
        jobs.close()


@pytest.fixture
def state() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmferry.migration.saga.RETRY_S", 0.02)


def away_at(fleet: Fleet, host: str, call: str) -> None:
    """The host goes away with that call."""

    def meets(asked: str, what: str) -> None:
        if (asked, what) == (host, call):
            fleet.away.add(host)

    fleet.meets = meets


def waiting(jobs: Jobs, id: str) -> str:
    until(lambda: "job resolve" in jobs.get(id).progress.now)
    return jobs.get(id).progress.now


def ended(jobs: Jobs, id: str) -> JobView:
    until(lambda: jobs.get(id).state in FINAL)
    return jobs.get(id)


@pytest.mark.slow
def test_a_job_that_lost_its_destination_in_the_cut_over_waits_says_so_and_is_taken_back(state: Path) -> None:
    fleet = Fleet(make_world())
    away_at(fleet, FAR, "release")
    with worker(state, fleet) as jobs:
        id = jobs.submit(QUICK).id
        said = waiting(jobs, id)
        assert f"{FAR} does not answer" in said
        assert f"`vmferry job resolve {id} --vm-is-at {NEAR}`" in said
        assert jobs.get(id).state is JobState.RUNNING
        for at, vm, why in (("elsewhere", "guest", "not to elsewhere"), (NEAR, "gues", "confirm it with the name")):
            with pytest.raises(UsageError, match=why):
                jobs.resolve(id, at, vm)
        with pytest.raises(NotResolvable, match=f"{NEAR} answers, so nothing has to be guessed"):
            jobs.resolve(id, FAR, "guest")

        fleet.kept_world.world.at(FAR).machines[UUID].live = None  # it is switched off
        view = jobs.resolve(id, NEAR, "guest")
        assert view.lost == FAR
        view = ended(jobs, id)
        assert (view.state, view.kind) == (JobState.UNDONE, "DestinationLost")
        assert "never start it on far again" in view.sentence
        assert fleet.kept_world.world.violations == []
        assert fleet.kept_world.world.machine(UUID).power is Power.RUNNING
        assert any(path.name == f"vmferry-{id}.memory" for path in view.left)
        with pytest.raises(WrongState):
            jobs.resolve(id, NEAR, "guest")


@pytest.mark.slow
def test_a_walk_that_ends_by_itself_as_it_is_superseded_is_gone_on_with(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(make_world())
    away_at(fleet, FAR, "release")
    with worker(state, fleet) as jobs:
        id = jobs.submit(QUICK).id
        waiting(jobs, id)
        fleet.kept_world.world.at(FAR).machines[UUID].live = None
        declare_lost = jobs._store.declare_lost

        def slowly(*given: Any) -> int:
            epoch = declare_lost(*given)
            jobs._active.stop(id)  # what it would find out at its next record
            until(lambda: not jobs._engine._running[id])
            return epoch

        monkeypatch.setattr(jobs._store, "declare_lost", slowly)
        jobs.resolve(id, NEAR, "guest")
        assert ended(jobs, id).state is JobState.UNDONE


@pytest.mark.slow
def test_the_lost_host_that_is_back_lists_what_is_left_and_refuses_who_acted_before(state: Path) -> None:
    fleet = Fleet(make_world())
    away_at(fleet, FAR, "release")
    with worker(state, fleet) as jobs:
        id = jobs.submit(QUICK).id
        waiting(jobs, id)
        far = fleet.kept_world.world.at(FAR)
        far.machines[UUID].live = None
        jobs.resolve(id, NEAR, "guest")
        ended(jobs, id)

        fleet.away.clear()
        fleet.meets = lambda host, call: None
        assert f"placeholder of VM guest (vmferry-{id})" in jobs.leftovers(FAR)
        assert any(f"vmferry-{id}.memory" in left for left in jobs.leftovers(FAR))
        assert jobs.leftovers(NEAR) == []
        jobs.reap(FAR)
        assert jobs.leftovers(FAR) == []
        assert UUID not in far.machines
        with pytest.raises(Superseded):
            fleet.open(FAR, FencingToken(id, 1)).withdraw(UUID)


@pytest.mark.slow
def test_a_job_that_lost_its_source_goes_on_also_with_another_worker(state: Path) -> None:
    fleet = Fleet(make_world())
    away_at(fleet, NEAR, "end_serving")
    with worker(state, fleet) as jobs:
        id = jobs.submit(QUICK).id
        assert f"--vm-is-at {FAR}`" in waiting(jobs, id)
        since = waiting(jobs, id).partition("since ")[2]
    with worker(state, fleet) as jobs:
        assert waiting(jobs, id).partition("since ")[2] == since
        jobs.resolve(id, FAR, "guest")
        with pytest.raises(WrongState):
            jobs.cancel(id)
        assert ended(jobs, id).state is JobState.DONE
        receipt = jobs.receipt(id)
        assert (receipt.from_host, receipt.to_host, receipt.lost) == (NEAR, FAR, NEAR)
        assert {image.source for image in jobs.get(id).plan.images} <= set(receipt.left)
        assert checksum(json.loads(dump(receipt))) == receipt.checksum
        assert fleet.kept_world.world.violations == []
        assert fleet.kept_world.world.at(FAR).machine(UUID).power is Power.RUNNING


@pytest.mark.slow
def test_a_stuck_job_is_resolved_too(state: Path) -> None:
    fleet = Fleet(make_world())

    def meets(host: str, call: str) -> None:
        if (host, call) == (FAR, "adopt"):
            raise HostRefused(host=FAR, action="define the VM", reason="on fire")

    fleet.meets = meets
    with worker(state, fleet) as jobs:
        id = jobs.submit(QUICK).id
        until(lambda: jobs.get(id).state is JobState.STUCK)
        with pytest.raises(NotResolvable, match="far answers"):
            jobs.resolve(id, NEAR, "guest")
        fleet.away.add(FAR)
        far = fleet.kept_world.world.at(FAR)
        there = far.machines.pop(UUID)
        _as_of_the_cut_over(fleet.kept_world.world, id)
        jobs.resolve(id, NEAR, "guest")
        view = ended(jobs, id)
        assert view.state is JobState.UNDONE
        assert "as it was at the cut-over" in view.sentence
        assert fleet.kept_world.world.violations == []
        assert fleet.kept_world.world.machine(UUID).power is Power.RUNNING

        there.live, there.definition, there.placeholder = None, dict(there.definition or {}), ""
        far.machines[UUID] = there  # the host is back, and had defined the VM for good
        fleet.away.clear()
        told = f"VM guest: never start it here, job {id} went on without this host"
        assert told in jobs.leftovers(FAR)
        jobs.reap(FAR)
        assert jobs.leftovers(FAR) == [told]
        assert UUID in far.machines


def _as_of_the_cut_over(world: World, job: str) -> None:
    """What the guest was promised on a host that burned is lost with it."""
    for target in ("vda", "vdb"):
        top = max(path for path in world.files if isinstance(path, Path) and _overlay_of(path, target, job))
        world.acknowledged[UUID, target] = dict(world.content(top))


def _overlay_of(path: Path, target: str, job: str) -> bool:
    return path.name.startswith({"vda": "guest-a", "vdb": "guest-b"}[target]) and f"vmferry-{job}.r" in path.name


@pytest.mark.slow
def test_a_move_on_one_host_is_not_resolved(state: Path) -> None:
    fleet = Fleet(make_world())
    away_at(fleet, NEAR, "save")
    with worker(state, fleet) as jobs:
        id = jobs.submit(replace(QUICK, to=None)).id
        until(lambda: "does not answer" in jobs.get(id).progress.now)
        assert "job resolve" not in jobs.get(id).progress.now
        with pytest.raises(NotResolvable, match="on one host"):
            jobs.resolve(id, NEAR, "guest")
        fleet.away.clear()
        fleet.meets = lambda host, call: None
        assert ended(jobs, id).state is JobState.DONE


@pytest.mark.slow
def test_with_both_hosts_away_nothing_is_guessed(state: Path) -> None:
    fleet = Fleet(make_world())
    away_at(fleet, FAR, "release")
    with worker(state, fleet) as jobs:
        id = jobs.submit(QUICK).id
        waiting(jobs, id)
        fleet.away.add(NEAR)
        with pytest.raises(NotResolvable, match="does not answer either"):
            jobs.resolve(id, NEAR, "guest")
        fleet.away.clear()
        fleet.meets = lambda host, call: None
        assert ended(jobs, id).state is JobState.DONE
