"""The throttle on a clock that moves only when somebody waits."""

from itertools import pairwise
from queue import SimpleQueue
from threading import Condition, Event, Thread, current_thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.errors import Cancelled
from vmferry.transfer.throttle import BURST_S, Gate, Throttle

MIB = 1024 * 1024


class FakeClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, change: Condition, seconds: float) -> None:
        self.time += seconds


def go_on() -> None:
    """A check that finds nothing."""


@pytest.mark.slow
@settings(deadline=None)
@given(
    limit=st.integers(1000, 10**9),
    requests=st.lists(st.tuples(st.integers(1, 4 * MIB), st.floats(0, 2)), min_size=1, max_size=50),
)
def test_no_span_of_time_sees_more_than_the_rate_and_one_burst(limit: int, requests: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    throttle = Throttle(limit, clock)
    passed: list[tuple[float, int]] = []
    for wanted, idle in requests:
        clock.time += idle
        throttle.take(wanted, go_on)
        passed.append((clock.time, wanted))
    for first in range(len(passed)):
        moved = 0
        for when, wanted in passed[first:]:
            # The last request may be in debt; all before it have to fit into the time and one burst.
            assert moved <= (when - passed[first][0]) * limit + limit * BURST_S + passed[first][1] + 1
            moved += wanted


def test_a_full_rate_is_reached() -> None:
    clock = FakeClock()
    throttle = Throttle(10 * MIB, clock)
    for _ in range(100):
        throttle.take(MIB, go_on)
    assert 9.0 <= clock.time <= 10.5


def test_without_a_limit_nobody_waits() -> None:
    clock = FakeClock()
    Throttle(None, clock).take(10**12, go_on)
    assert clock.time == 0


def test_an_idle_time_earns_no_more_than_a_burst() -> None:
    clock = FakeClock()
    throttle = Throttle(MIB, clock)
    clock.time = 3600
    throttle.take(MIB // 4, go_on)
    assert clock.time == 3600
    throttle.take(MIB // 4, go_on)
    assert clock.time == pytest.approx(3600.25, abs=0.01)


def test_a_waiter_looks_for_cancel_at_least_twice_a_second() -> None:
    clock = FakeClock()
    throttle = Throttle(1000, clock)
    looks: list[float] = []

    def check() -> None:
        looks.append(clock.time)
        if len(looks) == 10:
            raise Cancelled

    throttle.take(10_000, go_on)  # a burst's worth of waiting, then ten seconds of debt
    with pytest.raises(Cancelled):
        throttle.take(10_000, check)
    assert all(b - a <= 0.5 for a, b in pairwise(looks))


def test_a_cancelled_waiter_takes_nothing_and_lets_the_next_one_go() -> None:
    clock = FakeClock()
    throttle = Throttle(1000, clock)

    def cancel() -> None:
        raise Cancelled

    throttle.take(1000, go_on)
    with pytest.raises(Cancelled):
        throttle.take(10**9, cancel)
    throttle.take(250, go_on)
    assert clock.time < 3


def test_removing_the_limit_wakes_who_waits() -> None:
    throttle = Throttle(1)
    waiting, done = Event(), Event()

    def wait() -> None:
        throttle.take(10**9, go_on)
        throttle.take(10**9, waiting.set)
        done.set()

    thread = Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(10)
    throttle.set_limit(None)
    assert done.wait(10)
    thread.join(10)


class HandClock(FakeClock):
    """Time that the test sets; who waits is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: SimpleQueue[tuple[Thread, float]] = SimpleQueue()

    def wait(self, change: Condition, seconds: float) -> None:
        self.waits.put((current_thread(), self.time))
        change.wait(0.01)

    def until_waits(self, thread: Thread) -> None:
        """Until the thread has looked at the present time and waits on; raises Empty if it does not."""
        while self.waits.get(timeout=5) != (thread, self.time):
            pass


def in_line(throttle: Throttle, clock: HandClock, wanted: int) -> Thread:
    thread = Thread(target=throttle.take, args=(wanted, go_on), daemon=True)
    thread.start()
    clock.until_waits(thread)
    return thread


def test_a_small_request_does_not_overtake_a_large_one_that_came_first() -> None:
    clock = HandClock()
    throttle = Throttle(1000, clock)
    large = in_line(throttle, clock, 250)
    small = in_line(throttle, clock, 1)
    clock.time = 0.1  # enough for the small one only
    clock.until_waits(small)
    clock.time = 0.2505
    large.join(10)
    assert not large.is_alive()
    clock.time = 200
    small.join(10)
    assert not small.is_alive()


@pytest.mark.parametrize(("limit", "piece"), [(None, 4 * MIB), (1, 65536), (MIB, MIB // 4), (10**9, 4 * MIB)])
def test_pieces_are_no_larger_than_a_burst_and_no_smaller_than_a_block(limit: int | None, piece: int) -> None:
    assert Throttle(limit).piece(4 * MIB) == piece


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="pause"):
        Throttle(0)


def test_what_passes_has_to_pass_the_throttles_above_too() -> None:
    clock = FakeClock()
    host = Throttle(10 * MIB, clock)
    jobs = [Throttle(None, clock, [host]), Throttle(100 * MIB, clock, [host])]
    for _ in range(50):
        for job in jobs:
            job.take(MIB, go_on)
    assert 9.0 <= clock.time <= 10.5
    assert [job.tightest_bytes_s for job in jobs] == [10 * MIB, 10 * MIB]


def test_a_limit_above_counts_at_once() -> None:
    clock = FakeClock()
    storage = Throttle(None, clock)
    job = Throttle(None, clock, [storage])
    job.take(100 * MIB, go_on)
    assert clock.time == 0.0
    storage.set_limit(MIB)
    for _ in range(10):
        job.take(MIB, go_on)
    assert clock.time >= 9.0
    assert job.piece(4 * MIB) <= MIB


def test_a_higher_priority_goes_first_and_the_lower_one_trickles() -> None:
    clock = FakeClock()
    host = Throttle(10 * MIB, clock)
    first, second = Throttle(None, clock, [host], rank=1), Throttle(None, clock, [host], rank=2)
    passed: list[float] = []
    while clock.time < 20:
        first.take(MIB, go_on)
        if host.gave_way(2):
            passed.append(clock.time)
    assert 7 <= len(passed) <= 11  # one every TRICKLE_S, and the first at once
    clock.time += 2
    before = clock.time
    second.take(MIB, go_on)
    assert clock.time == before  # nobody goes before it any more


def test_equals_do_not_wait_for_each_other() -> None:
    clock = FakeClock()
    storage = Throttle(None, clock)
    jobs = [Throttle(None, clock, [storage], rank=2) for _ in range(3)]
    for _ in range(10):
        for job in jobs:
            job.take(MIB, go_on)
    assert clock.time == 0.0


def test_who_gives_way_can_be_cancelled() -> None:
    clock = FakeClock()
    storage = Throttle(None, clock)
    first, second = Throttle(None, clock, [storage], rank=0), Throttle(None, clock, [storage], rank=3)
    second.take(MIB, go_on)
    first.take(MIB, go_on)

    def cancel() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        second.take(MIB, cancel)


def asked_of_nobody() -> None:
    """A gate that needs nobody to look."""


def test_all_but_foreground_pass_the_gate_of_the_guests() -> None:
    clock = FakeClock()
    gate = Gate(asked_of_nobody, clock)
    gate.give(MIB, "giving way")
    first, second = Throttle(None, clock, [gate], rank=0), Throttle(None, clock, [gate], rank=1)
    for _ in range(10):
        first.take(MIB, go_on)
    assert clock.time == 0.0
    assert (first.tightest_bytes_s, first.says, first.gives_way) == (None, "", False)
    for _ in range(10):
        second.take(MIB, go_on)
    assert clock.time >= 9.0
    assert (second.tightest_bytes_s, second.says, second.gives_way) == (MIB, "giving way", True)
    assert second.ordered_bytes_s is None
    assert gate.passed_bytes == 10 * MIB
    assert (first.slowed, second.slowed) == (False, True)


def test_who_insists_does_not_give_way() -> None:
    clock = FakeClock()
    gate = Gate(asked_of_nobody, clock)
    gate.give(1, "giving way")
    throttle = Throttle(None, clock, [gate], rank=3)
    throttle.insists = True
    throttle.take(MIB, go_on)
    assert clock.time == 0.0


def test_the_gate_asks_to_be_looked_after_whenever_somebody_comes() -> None:
    asked: list[None] = []
    gate = Gate(lambda: asked.append(None), FakeClock())
    job = Throttle(None, FakeClock(), [gate], rank=2)
    job.take(1000, go_on)
    job.moved(500)  # by an agent, which asks nobody here
    assert len(asked) == 2
    assert gate.passed_bytes == 1500


def test_nothing_passes_what_is_closed_and_who_waits_can_be_cancelled() -> None:
    clock = FakeClock()
    host = Throttle(None, clock)
    job = Throttle(None, clock, [host])
    host.close("until Monday")
    assert (job.says, job.closed) == ("until Monday", "until Monday")

    def cancel_after_a_minute() -> None:
        if clock.time > 60:
            raise Cancelled

    with pytest.raises(Cancelled):
        job.take(1, cancel_after_a_minute)
    host.close("")
    before = clock.time
    job.take(100 * MIB, go_on)
    assert clock.time == before
    assert job.says == ""


def test_opening_wakes_who_waits() -> None:
    throttle = Throttle()
    throttle.close("until Monday")
    waiting, done = Event(), Event()

    def wait() -> None:
        throttle.take(10**9, waiting.set)
        done.set()

    thread = Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(10)
    throttle.close("")
    assert done.wait(10)
    thread.join(10)
