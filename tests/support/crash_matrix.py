"""What a test needs to cut a strategy at any call, and to judge what is left."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.worlds import UUID, Bench, Scenario, broken

from vmferry.hosts.simulator.driver import Moment, World
from vmferry.model import JobState

ENDED = (JobState.DONE, JobState.UNDONE)


@dataclass
class Recorder:
    """A hook that notes each moment of the calls that act."""

    moments: list[Moment] = field(default_factory=list)

    def __call__(self, moment: Moment, world: World) -> None:
        if moment.when == "before" or self.acted(moment):
            self.moments.append(moment)

    def acted(self, moment: Moment) -> bool:
        return moment.call not in LOOKS


LOOKS = {"vm", "vms", "power", "active_image", "image", "folder", "allocated", "exists", "users", "leftovers"}


def new(scenario: Scenario, **given: object) -> Bench:
    return Bench(scenario, **given)  # type: ignore[arg-type]


def moments(scenario: Scenario, cancel_at: int | None = None) -> tuple[Bench, list[Moment]]:
    recorder = Recorder()
    bench = new(scenario, hook=recorder, cancel_at=cancel_at)
    bench.run()
    return bench, recorder.moments


def assert_kept(bench: Bench, where: object, *, qemu_died: bool = False) -> JobState:
    end = bench.run()
    assert end in ENDED, where
    assert broken(bench, end, qemu_died=qemu_died) == [], where
    return end


def kill_qemu(world: World) -> None:
    if UUID in world.machines:
        world.kill_qemu(UUID)
