"""The walk itself, on steps made for the test."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from tests.support.worlds import Facts

from vmferry.errors import Cancelled, HostUnreachable, Superseded, VmferryError, VmHeld
from vmferry.migration.facts import JobFacts
from vmferry.migration.saga import Outcome, Strategy, walk
from vmferry.migration.steps.step import Job, Step
from vmferry.model import ALLOWED, JobState


class Failed(VmferryError):
    says = "it failed"


class Act(Step):
    """A step that notes what is asked of it, and raises what it was given, one after the other."""

    def __init__(self, name: str, done: list[str], *, do: tuple[Exception, ...] = (), undo: int = 0) -> None:
        self._name = name
        self._done = done
        self._do = list(do)
        self._undo = undo
        self.is_found = False
        self.is_crossed = False

    @property
    def name(self) -> str:
        return self._name

    def do(self, job: Job) -> None:
        self._done.append(f"do {self._name}")
        if self._do:
            raise self._do.pop(0)

    def undo(self, job: Job) -> None:
        self._done.append(f"undo {self._name}")
        if self._undo:
            self._undo -= 1
            raise Failed

    def found(self, job: Job) -> bool:
        return self.is_found

    def crossed(self, job: Job) -> bool:
        return self.is_crossed


class Bench:
    """Job, control and journal in one."""

    id = "abcd2345"
    plan = SimpleNamespace(vm="guest", connect="memory", to=None)
    lost = None

    def __init__(self) -> None:
        self.facts = JobFacts(Facts({}))
        self.states = [JobState.RUNNING]
        self.stuck = 0
        self.memo: dict[str, Outcome] = {}
        self.control = self
        self.cancelled = False

    def suspendable(self) -> Bench:
        return self

    def uncancellable(self) -> Bench:
        return self

    def check(self) -> None:
        if self.cancelled:
            raise Cancelled

    def wait(self, seconds: float) -> None:
        pass

    def waits(self, why: str) -> None:
        pass

    def state(self, state: JobState, why: str = "", kind: str = "") -> None:
        if self.states[-1] is not state:
            assert (self.states[-1], state) in ALLOWED
            self.states.append(state)

    def begun(self, act: Literal["do", "undo"], step: Step, number: int) -> None:
        pass

    def ended(self, act: Literal["do", "undo"], step: Step, number: int, outcome: Outcome) -> None:
        pass

    def wait_for_retry(self) -> None:
        self.stuck += 1

    def once(self, name: str, act: Callable[[], Outcome]) -> Outcome:
        if name not in self.memo:
            self.memo[name] = act()
        return self.memo[name]

    def walk(self, *steps: Act, no_return: str) -> JobState:
        return walk(Strategy(steps, no_return), cast(Any, self), self, self.once)


def test_steps_are_done_in_order() -> None:
    done: list[str] = []
    bench = Bench()
    assert bench.walk(Act("a", done), Act("b", done), no_return="b") is JobState.DONE
    assert done == ["do a", "do b"]


def test_a_failure_before_the_point_of_no_return_undoes_newest_first() -> None:
    done: list[str] = []
    bench = Bench()
    end = bench.walk(Act("a", done), Act("b", done, do=(Failed(),)), Act("c", done), no_return="c")
    assert end is JobState.UNDONE
    assert done == ["do a", "do b", "undo b", "undo a"]
    assert bench.states == [JobState.RUNNING, JobState.UNDOING, JobState.UNDONE]


def test_a_bug_in_a_step_undoes_the_job() -> None:
    done: list[str] = []
    assert Bench().walk(Act("a", done, do=(KeyError("x"),)), no_return="a") is JobState.UNDONE


def test_a_replay_acts_no_more() -> None:
    done: list[str] = []
    bench = Bench()
    steps = (Act("a", done), Act("b", done, do=(Failed(),)))
    bench.walk(*steps, no_return="b")
    before = list(done)
    assert bench.walk(*steps, no_return="b") is JobState.UNDONE
    assert done == before


def test_a_step_that_took_effect_before_the_crash_is_not_done_again() -> None:
    done: list[str] = []
    found = Act("a", done)
    found.is_found = True
    Bench().walk(found, Act("b", done), no_return="b")
    assert done == ["do b"]


def test_a_failure_half_over_the_point_of_no_return_goes_forward() -> None:
    done: list[str] = []
    pivot = Act("pivot", done, do=(Failed(),))
    pivot.is_crossed = True
    bench = Bench()
    assert bench.walk(Act("a", done), pivot, no_return="pivot") is JobState.DONE
    assert done == ["do a", "do pivot", "do pivot"]


def test_past_the_point_of_no_return_an_operator_is_asked_and_nothing_is_undone() -> None:
    done: list[str] = []
    bench = Bench()
    merge = Act("merge", done, do=(Failed(),) * 4)
    assert bench.walk(Act("pivot", done), merge, no_return="pivot") is JobState.DONE
    assert done == ["do pivot"] + ["do merge"] * 5
    assert bench.stuck == 1
    assert bench.states == [JobState.RUNNING, JobState.STUCK, JobState.RUNNING, JobState.DONE]


def test_an_undo_that_fails_is_tried_again_then_an_operator_is_asked() -> None:
    done: list[str] = []
    bench = Bench()
    end = bench.walk(Act("a", done, do=(Failed(),), undo=3), Act("b", done), no_return="b")
    assert end is JobState.UNDONE
    assert done == ["do a"] + ["undo a"] * 4
    assert bench.stuck == 1


@pytest.mark.parametrize(
    "away",
    [
        HostUnreachable(host="h", reason="gone"),
        VmHeld(host="h", action="unload it", reason="cannot acquire state change lock"),
    ],
    ids=lambda away: type(away).__name__,
)
def test_a_host_that_is_away_or_at_work_on_the_vm_is_waited_for(away: VmferryError) -> None:
    done: list[str] = []
    assert Bench().walk(Act("a", done, do=(away, away)), no_return="a") is JobState.DONE
    assert done == ["do a"] * 3


def test_a_cancel_is_heard_between_steps() -> None:
    done: list[str] = []
    bench = Bench()
    bench.cancelled = True
    assert bench.walk(Act("a", done), no_return="a") is JobState.UNDONE
    assert done == ["undo a"]


def test_who_was_superseded_records_no_outcome() -> None:
    done: list[str] = []
    bench = Bench()
    gone = Superseded(job="a", epoch=1, newest=2)
    try:
        bench.walk(Act("a", done, do=(gone,)), no_return="a")
    except Superseded:
        assert bench.memo == {}
        assert bench.states == [JobState.RUNNING]
    else:
        raise AssertionError("it went on")
