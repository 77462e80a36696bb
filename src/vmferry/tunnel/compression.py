"""Decides whether to compress what goes through a tunnel, by measuring, for each direction by itself.

Bytes arrive at the link's rate when they go as they are, and at min(compressor's rate, link's rate * ratio) when
they are compressed: that is a forecast. Whether it came true is seen on the bytes themselves, since a link that
looks slow may be a slow reader at its end, whom compression does not help. A link that is known to be slow is
believed at first: measuring it would take a good part of what has to go.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 1.0
"""How long is measured before it is judged."""
FIRST_S = 0.25
"""The same just after a change, so that a wrong one costs little."""
GAIN = 1.15
"""Compression has to promise so much more, and to keep a third of it, or the processor is better left to guests."""
KEPT = 1.05
BLOCKED = 0.2
"""A link that keeps its sender waiting for less of the time is not what holds the bytes up."""
SAMPLES = 4
"""Frames in a window that are compressed to see what would come of it, while the rest goes as it is."""
LEAST_SAMPLE = 16 * 1024
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 64.0
FIRST_PROBE_S, LONGEST_PROBE_S = 8.0, 64.0
MOST_SKIPPED = 16


@dataclass(frozen=True, slots=True)
class Sent:
    """Sizes of one frame that was sent, in bytes, and the seconds that it took."""

    plain: int
    wire: int
    tried_wire: int | None = None  # its size compressed, if that was tried
    tried_s: float = 0.0
    blocked_s: float = 0.0  # while the link took nothing


class _Window:
    """Measurements since the window began."""

    def __init__(self, now: float, length_s: float) -> None:
        self.began = now
        self.length_s = length_s
        self.idle_s = self.blocked_s = self.tried_s = 0.0
        self.plain = self.wire = self.tried_plain = self.tried_wire = 0

    def add(self, sent: Sent) -> None:
        self.plain += sent.plain
        self.wire += sent.wire
        self.blocked_s += sent.blocked_s
        if sent.tried_wire is not None:
            self.tried_s += sent.tried_s
            self.tried_plain += sent.plain
            self.tried_wire += sent.tried_wire

    def active_s(self, now: float) -> float:
        """Return the seconds in which there was something to send."""
        return max(now - self.began - self.idle_s, 1e-6)

    def forecast(self, link: float) -> float:
        """Return the bytes a second that would arrive if all were compressed; 0 if compression was not tried."""
        if not self.tried_plain:
            return 0.0
        return min(self.tried_plain / max(self.tried_s, 1e-9), link * self.tried_plain / max(self.tried_wire, 1))


class CompressionChoice:
    """Decides for each frame whether to compress it, and learns from the results. Its callers pass in the time."""

    def __init__(self, now: float, *, slow: bool = False) -> None:
        """Begin at `now`, in seconds. `slow`: the link is known to be slow, so compress from the first byte."""
        self.compressing = slow
        self._window = _Window(now, FIRST_S)
        self._was_blocked = False  # in the last window
        self._raw_rate = 0.0 if slow else float("inf")  # what arrived without compression, held up by the link alone
        self._retry_s = FIRST_RETRY_S
        self._retry_at = now
        self._probe_s = FIRST_PROBE_S
        self._probe_at = now + self._probe_s
        self._sampled_at = now
        self._skip = self._skipping = 0

    def squeeze(self, plain: int, now: float) -> bool:
        """Should the next frame be compressed?"""
        if not self.compressing:
            return self._sample(plain, now)
        if self._skip:
            self._skip -= 1
            return False
        return True

    def waited(self, seconds: float) -> None:
        """Leave out so many seconds in which there was nothing to send: the link did not cause them."""
        self._window.idle_s += seconds

    def sent(self, frame: Sent, now: float) -> None:
        """Record a frame that was sent, and decide anew when the window is over."""
        self._window.add(frame)
        if self.compressing and frame.tried_wire is not None:
            self._note_skip(shrank=frame.wire < frame.plain)
        if now - self._window.began >= self._window.length_s:
            self._judge(now)

    def _sample(self, plain: int, now: float) -> bool:
        """Should this frame be a sample of compression? Now and then, if the link blocks and the frame is large."""
        held_up = self._was_blocked or self._window.blocked_s > BLOCKED * FIRST_S
        of_use = held_up and plain >= LEAST_SAMPLE and now >= self._retry_at - WINDOW_S
        if not of_use or now < self._sampled_at + self._window.length_s / SAMPLES:
            return False
        self._sampled_at = now
        return True

    def _note_skip(self, *, shrank: bool) -> None:
        """After frames that did not shrink, let more and more frames go without trying."""
        self._skipping = 0 if shrank else min(MOST_SKIPPED, self._skipping * 2 or 1)
        self._skip = self._skipping

    def _judge(self, now: float) -> None:
        window, was = self._window, self.compressing
        self._was_blocked = window.blocked_s > BLOCKED * window.active_s(now)
        if was:
            self._judge_compressing(now)
        else:
            self._judge_raw(now)
        self._window = _Window(now, WINDOW_S if self.compressing is was else FIRST_S)

    def _judge_raw(self, now: float) -> None:
        if not self._was_blocked:
            self._raw_rate = float("inf")  # the link takes all that there is
            return
        self._raw_rate = self._window.wire / self._window.active_s(now)
        if self._window.forecast(self._raw_rate) > GAIN * self._raw_rate and now >= self._retry_at:
            self.compressing, self._probe_at = True, now + self._probe_s
            self._skip = self._skipping = 0

    def _judge_compressing(self, now: float) -> None:
        if self._window.plain / self._window.active_s(now) < KEPT * self._raw_rate:
            self._give_up(now)
        elif now >= self._probe_at:
            self.compressing = False  # for one short window, to see what the link is like by now
            self._probe_s = min(LONGEST_PROBE_S, 2 * self._probe_s)
        else:
            self._retry_s = FIRST_RETRY_S

    def _give_up(self, now: float) -> None:
        """Stop compressing, since it did not pay; wait before the next try, longer each time."""
        self.compressing = False
        self._retry_at = now + self._retry_s
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        self._probe_s = FIRST_PROBE_S
