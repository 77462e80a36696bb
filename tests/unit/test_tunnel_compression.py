"""When a tunnel compresses, on links, compressors and readers that are simulated: no second here is the clock's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.tunnel.compression import FIRST_PROBE_S, CompressionChoice, Sent
from vmferry.tunnel.frames import MOST
from vmferry.tunnel.wire import UNSENT

MIB = 1024 * 1024
MBIT = 1_000_000 / 8
ENDLESS = float("inf")


def always(value: float) -> Callable[[float], float]:
    return lambda _: value


@dataclass
class Stream:
    """What is sent over what; rates in bytes a second, as functions of the time where they may change."""

    link: Callable[[float], float]
    ratio: Callable[[float], float] = field(default_factory=lambda: always(1.0))
    compressor: float = 300 * MIB
    reader: float = ENDLESS
    writer: float = ENDLESS
    sender: float = 1500 * MIB  # encrypting and handing over

    now: float = 0.0
    drained_at: float = 0.0
    compressing_s: float = 0.0
    tried: int = 0
    frames: int = 0
    written_at: float = 0.0

    def send(self, plain: int, *, always_try: bool = False, never_try: bool = False, slow: bool = False) -> float:
        """Send so many bytes in frames; gives the seconds until they have arrived."""
        choice = CompressionChoice(self.now, slow=slow)
        for _ in range(plain // MOST):
            self._await_writer(choice)
            squeeze = always_try or (choice.squeeze(MOST, self.now) and not never_try)
            self._frame(choice, squeeze=squeeze)
        return max(self.now, self.drained_at)

    def _await_writer(self, choice: CompressionChoice) -> None:
        self.written_at = max(self.written_at, self.now - 1.0) + MOST / self.writer
        if self.written_at > self.now:
            choice.waited(self.written_at - self.now)
            self.now = self.written_at

    def _frame(self, choice: CompressionChoice, *, squeeze: bool) -> None:
        wire, tried_wire, tried_s = MOST, None, 0.0
        if squeeze:
            tried_wire, tried_s = int(MOST / self.ratio(self.now)), MOST / self.compressor
            wire = tried_wire if tried_wire * 20 <= MOST * 19 else MOST
            self.tried += 1
            self.compressing_s += tried_s
        self.frames += 1
        self.now += tried_s + wire / self.sender
        rate = self.link(self.now)
        blocked = max(0.0, self.drained_at - self.now - UNSENT / rate)
        self.now += blocked
        self.drained_at = max(self.now, self.drained_at) + max(wire / rate, MOST / self.reader)
        choice.sent(Sent(MOST, wire, tried_wire, tried_s, blocked), self.now)


def test_on_a_slow_link_what_compresses_arrives_several_times_sooner() -> None:
    plain = 400 * MIB
    raw = Stream(always(100 * MBIT), always(4.0)).send(plain, never_try=True)
    assert Stream(always(100 * MBIT), always(4.0)).send(plain) < raw / 3.5


def test_a_link_that_is_known_to_be_slow_is_not_measured_before_its_bytes_are_compressed() -> None:
    stream = Stream(always(1000 * MBIT), always(4.0))
    took = stream.send(400 * MIB, slow=True)
    assert stream.tried == stream.frames
    assert took == Stream(always(1000 * MBIT), always(4.0)).send(400 * MIB, always_try=True)


def test_a_link_that_was_said_to_be_slow_and_is_not_is_found_out() -> None:
    stream = Stream(always(10_000 * MBIT), always(4.0), sender=600 * MIB)
    stream.send(4000 * MIB, slow=True)
    tried = stream.tried
    assert tried * MOST < FIRST_PROBE_S * 300 * MIB
    assert stream.now < FIRST_PROBE_S + 4000 / 600


def test_noise_on_a_slow_link_costs_no_time_and_next_to_no_processor() -> None:
    stream = Stream(always(100 * MBIT))
    took = stream.send(400 * MIB)
    assert took < 1.005 * Stream(always(100 * MBIT)).send(400 * MIB, never_try=True)
    assert stream.compressing_s < 0.01 * took


def test_on_a_link_that_takes_all_nothing_is_compressed() -> None:
    stream = Stream(always(10_000 * MBIT), always(4.0), sender=600 * MIB)
    stream.send(4000 * MIB)
    assert stream.tried == 0


def test_a_compressor_slower_than_the_link_is_not_used() -> None:
    stream = Stream(always(1000 * MBIT), always(4.0), compressor=80 * MIB)
    stream.send(2000 * MIB)
    assert stream.tried < 0.05 * stream.frames


def test_a_slow_reader_is_not_taken_for_a_slow_link_for_long() -> None:
    """The link looks as slow as the reader; only the trial shows that compression brings nothing sooner."""
    stream = Stream(always(1000 * MBIT), always(4.0), reader=20 * MIB)
    stream.send(6000 * MIB)
    assert stream.tried < 0.02 * stream.frames


def test_noise_after_text_is_soon_left_alone_and_text_after_noise_soon_compressed() -> None:
    stream = Stream(always(100 * MBIT), lambda now: 4.0 if now % 40 < 20 else 1.0)
    stream.send(2000 * MIB)
    seconds = stream.now
    could_pass = (seconds / 2 * 4 + seconds / 2) * 100 * MBIT
    assert could_pass * 0.85 < 2000 * MIB
    assert stream.compressing_s < 0.25 * seconds / 2


def test_a_link_that_was_slow_and_is_fast_again_gets_the_bytes_as_they_are() -> None:
    stream = Stream(lambda now: (100 if now < 5 else 8000) * MBIT, always(4.0), sender=600 * MIB)
    stream.send(12_000 * MIB)
    tried = stream.tried
    fast = Stream(always(8000 * MBIT), sender=600 * MIB).send(12_000 * MIB, never_try=True)
    assert stream.now < 5 + 1.5 * fast
    stream.send(1000 * MIB)
    assert stream.tried == tried


def test_a_writer_slower_than_the_link_is_sent_as_it_is() -> None:
    stream = Stream(always(100 * MBIT), always(4.0), writer=5 * MIB)
    stream.send(300 * MIB)
    assert stream.tried == 0


def test_a_writer_between_the_link_and_the_compressor_is_never_held_up() -> None:
    stream = Stream(always(100 * MBIT), always(4.0), writer=30 * MIB)
    assert stream.send(1200 * MIB) < 1.08 * 1200 / 30


READERS = st.one_of(st.just(ENDLESS), st.floats(5, 1000))


def _took_and_best(
    mbit: float, ratio: float, compressor_mib: float, reader_mib: float, *, slow: bool
) -> tuple[float, float]:
    """With the choice, and with the better of always and never."""

    def stream() -> Stream:
        return Stream(always(mbit * MBIT), always(ratio), compressor_mib * MIB, reader_mib * MIB)

    plain = int(min(mbit * MBIT * 60, 1000 * MIB))
    best = min(stream().send(plain, never_try=True), stream().send(plain, always_try=True))
    return stream().send(plain, slow=slow), best


@settings(max_examples=60, deadline=None)
@given(st.floats(10, 20_000), st.floats(1.0, 50.0), st.floats(50, 3000), READERS)
def test_it_is_never_much_worse_than_the_better_of_always_and_never(
    mbit: float, ratio: float, compressor_mib: float, reader_mib: float
) -> None:
    took, best = _took_and_best(mbit, ratio, compressor_mib, reader_mib, slow=False)
    assert took < 1.2 * best + 1.5


@settings(max_examples=60, deadline=None)
@given(st.floats(10, 1000), st.floats(1.0, 50.0), st.floats(150, 3000), READERS)
def test_nor_is_it_where_a_link_is_known_to_be_slow(
    mbit: float, ratio: float, compressor_mib: float, reader_mib: float
) -> None:
    took, best = _took_and_best(mbit, ratio, compressor_mib, reader_mib, slow=True)
    assert took < 1.1 * best + 0.5
