"""A tunnel's frames and tickets: what is refused before it can cost anything."""

from __future__ import annotations

import errno
import random
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.support.simulated_site import until

from vmferry.errors import TunnelCut, VmferryError
from vmferry.tunnel.compression import CompressionChoice
from vmferry.tunnel.frames import HEAD, MOST, BadFrame, Expander, FrameKind, Squeezer, head_of
from vmferry.tunnel.sender import LEAST_AHEAD, TOLD_EACH, Sender, Waker
from vmferry.tunnel.tickets import Tickets
from vmferry.tunnel.wire import Wire, unpaced

TEXT = b"one and the same sentence, again and again. " * 5000


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """What a ticket let in."""

    def __init__(self) -> None:
        self.error: VmferryError | None = None

    def cut(self, error: VmferryError) -> None:
        self.error = error


# -- frames


def test_what_was_compressed_comes_back() -> None:
    frame = Squeezer().frame(memoryview(TEXT))
    assert frame is not None
    head = head_of(frame[: HEAD.size])
    assert (head.kind, head.plain) == (FrameKind.ZSTD, len(TEXT))
    assert head.wire * 20 < len(TEXT)
    assert Expander().expand(frame[HEAD.size :], head.plain) == TEXT


def test_noise_makes_no_frame() -> None:
    assert Squeezer().frame(memoryview(random.Random(1).randbytes(MOST))) is None


@pytest.mark.parametrize(
    ("number", "wire", "plain"),
    [
        (9, 1, 1),
        (FrameKind.RAW, 0, 0),
        (FrameKind.RAW, MOST + 1, MOST + 1),
        (FrameKind.RAW, 5, 6),
        (FrameKind.ZSTD, 0, 7),
        (FrameKind.ZSTD, 7, 7),
        (FrameKind.ZSTD, 7, MOST + 1),
        (FrameKind.ZSTD, 0xFFFFFFFF, 0xFFFFFFFF),
        (FrameKind.END, 0, 1),
        (FrameKind.PING, 1, 0),
        (FrameKind.GOT, 0, 0),
        (FrameKind.GOT, 1, 1),
    ],
)
def test_a_head_that_cannot_be_is_refused(number: int, wire: int, plain: int) -> None:
    with pytest.raises(BadFrame):
        head_of(memoryview(HEAD.pack(number, wire, plain)))


@pytest.mark.parametrize("says_its_size", [True, False], ids=["says its size", "hides its size"])
def test_a_bomb_is_refused_before_it_takes_memory(*, says_its_size: bool) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=says_its_size).compress(bytes(256 << 20))
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(BadFrame):
            Expander().expand(memoryview(bomb), MOST)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * MOST


def test_a_frame_with_something_behind_it_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(TEXT)
    with pytest.raises(BadFrame):
        Expander().expand(memoryview(frame + frame), len(TEXT))


@given(st.data())
def test_damage_to_a_compressed_frame_never_gives_more_than_was_declared(data: st.DataObject) -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(TEXT))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    with suppress(BadFrame):
        assert len(Expander().expand(memoryview(frame)[:cut], len(TEXT))) == len(TEXT)


# -- what is sent


class Recorder(Wire):
    """A wire that keeps what it was given."""

    def __init__(self, round_trip_s: float = 0.0) -> None:
        self.said: list[bytes] = []
        self._round_trip_s = round_trip_s

    def send(self, content: memoryview) -> float:
        self.said.append(bytes(content))
        return 0.0

    def round_trip_s(self) -> float:
        return self._round_trip_s

    def kinds(self) -> list[FrameKind]:
        return [head_of(memoryview(said)[: HEAD.size]).kind for said in self.said]


class HungUp(socket.socket):
    """A local socket that is hung up by a cut just when it is read, which looks like an end of file."""

    outward: Sender

    def recv_into(self, buffer: object, nbytes: int = 0, flags: int = 0) -> int:
        self.outward.stopped = True
        return 0


def test_a_cut_is_never_told_as_an_end() -> None:
    bell, wire = Waker(), Recorder()
    end, other = socket.socketpair()
    with other, HungUp(fileno=end.detach()) as local:
        other.sendall(b"x")
        local.outward = Sender(local, wire, bell, peer_quiet_s=30, slow=None)
        with pytest.raises(TunnelCut):
            local.outward.run()
    bell.close()
    assert wire.said == []


@pytest.mark.parametrize(("slow", "kind"), [(True, FrameKind.ZSTD), (None, FrameKind.ZSTD), (False, FrameKind.RAW)])
def test_what_would_pay_is_compressed_only_where_it_may_be(
    monkeypatch: pytest.MonkeyPatch, *, slow: bool | None, kind: FrameKind
) -> None:
    monkeypatch.setattr(CompressionChoice, "squeeze", lambda *_: True)
    bell, wire = Waker(), Recorder()
    local, other = socket.socketpair()
    local.setblocking(False)
    with other, local:
        other.sendall(TEXT[:65536])
        other.shutdown(socket.SHUT_WR)
        outward = Sender(local, wire, bell, peer_quiet_s=30, slow=slow)
        outward.delivered()
        outward.run()
    bell.close()
    assert [said for said in wire.kinds() if said < FrameKind.PING] == [kind]


class Program(socket.socket):
    """A local program that has as much to send as is asked of it, and counts it."""

    handed = 0
    most: int
    outward: Sender

    def recv_into(self, buffer: object, nbytes: int = 0, flags: int = 0) -> int:
        if self.handed >= self.most:
            self.outward.stopped = True  # or a test of one that never stops would not either
        assert isinstance(buffer, memoryview)
        self.handed += len(buffer)
        return len(buffer)


@contextmanager
def program(wire: Recorder, most: int, *, slow: bool) -> Iterator[Program]:
    bell = Waker()
    end, other = socket.socketpair()
    with other, Program(fileno=end.detach()) as local:
        other.sendall(b"x")  # for poll to see
        local.most = most
        local.outward = Sender(local, wire, bell, peer_quiet_s=30, slow=slow)
        yield local
    bell.close()


def _run_until_cut(outward: Sender) -> None:
    with suppress(TunnelCut):
        outward.run()


@pytest.mark.parametrize(("round_trip_s", "ahead"), [(0.0, LEAST_AHEAD), (0.001, LEAST_AHEAD + 1_250_000)])
def test_no_more_is_sent_ahead_than_fills_the_way_until_the_peer_says_what_it_got(
    round_trip_s: float, ahead: int
) -> None:
    wire = Recorder(round_trip_s)
    frames = -(-ahead // MOST)
    with program(wire, most=1 << 30, slow=True) as local:
        running = Thread(target=_run_until_cut, args=(local.outward,))
        running.start()
        until(lambda: len(wire.said) == frames)
        local.outward.got(2 * MOST)
        until(lambda: len(wire.said) == frames + 2)
        assert local.handed == (frames + 2) * MOST
        with pytest.raises(BadFrame):
            local.outward.got(frames * MOST + 1)
        local.outward.stopped = True
        local.outward.got(1)
        running.join(10)
        assert not running.is_alive()
    assert set(wire.kinds()) == {FrameKind.ZSTD}


def test_what_is_not_compressed_is_left_to_tcp() -> None:
    wire = Recorder()
    with program(wire, most=3 * LEAST_AHEAD, slow=False) as local, pytest.raises(TunnelCut):
        local.outward.run()
    assert wire.kinds() == [FrameKind.RAW] * (3 * LEAST_AHEAD // MOST)


def test_what_was_delivered_is_told_now_and_then_and_no_byte_twice() -> None:
    wire = Recorder()
    with program(wire, most=0, slow=True) as local:
        for count in (1, TOLD_EACH - 2, 1, 7):
            local.outward.took(count)
        with pytest.raises(TunnelCut):
            local.outward.run()
        local.outward.stopped = False
        local.outward.took(TOLD_EACH)
        with pytest.raises(TunnelCut):
            local.outward.run()
    assert wire.kinds() == [FrameKind.GOT, FrameKind.GOT]
    assert [head_of(memoryview(said)).plain for said in wire.said] == [TOLD_EACH + 7, TOLD_EACH]


class Tuned(socket.socket):
    """A socket of a host with this congestion control; it has cubic too, or not."""

    def __init__(self, congestion: bytes, *, cubic: bool = True) -> None:
        super().__init__()
        self.congestion, self._cubic = congestion, cubic

    def getsockopt(self, level: int, name: int, length: int = 0) -> bytes:  # type: ignore[override]
        assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        return self.congestion.ljust(length, b"\0")

    def setsockopt(self, level: int, name: int, value: bytes) -> None:  # type: ignore[override]
        assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        if not self._cubic:
            raise OSError(errno.ENOENT, "no such congestion control")
        self.congestion = value


@pytest.mark.parametrize(
    ("host", "cubic", "then"),
    [
        (b"bbr", True, b"cubic"),
        (b"bbr", False, b"bbr"),
        (b"reno", True, b"reno"),
        (b"dctcp", True, b"dctcp"),
    ],
)
def test_only_what_paces_is_changed(*, host: bytes, cubic: bool, then: bytes) -> None:
    with Tuned(host, cubic=cubic) as link:
        unpaced(link)
        assert link.congestion == then


# -- tickets


def test_a_ticket_lets_in_as_often_as_it_says() -> None:
    tickets = Tickets()
    ticket = tickets.issue(Path("/there"), 60, uses=2)
    assert [tickets.admit(ticket, Caller()) for _ in range(3)] == [Path("/there"), Path("/there"), None]


def test_a_ticket_expires_but_what_it_let_in_stays() -> None:
    clock, caller = Clock(), Caller()
    tickets = Tickets(clock)
    ticket = tickets.issue(Path("/there"), 60, uses=None)
    assert tickets.admit(ticket, caller)
    clock.now = 60
    assert tickets.admit(ticket, Caller()) is None
    assert (caller.error, len(tickets)) == (None, 1)
    tickets.ended(ticket, caller, used=True)
    assert len(tickets) == 0


def test_a_ticket_that_was_withdrawn_cuts_what_it_let_in_and_only_that() -> None:
    tickets, caller, other = Tickets(), Caller(), Caller()
    ticket, others = tickets.issue(Path("/there"), 60), tickets.issue(Path("/there"), 60)
    assert tickets.admit(ticket, caller)
    assert tickets.admit(others, other)
    tickets.withdraw(ticket)
    tickets.withdraw(ticket)
    assert "withdrawn" in str(caller.error)
    assert other.error is None
    assert tickets.admit(ticket, Caller()) is None


def test_a_ticket_that_led_nowhere_was_not_used() -> None:
    tickets, caller = Tickets(), Caller()
    ticket = tickets.issue(Path("/there"), 60)
    assert tickets.admit(ticket, caller)
    tickets.ended(ticket, caller, used=False)
    assert tickets.admit(ticket, caller)
    tickets.ended(ticket, caller, used=True)
    assert tickets.admit(ticket, caller) is None


@pytest.mark.parametrize("guess", ["", "x", "\ud800", "é" * 70])
def test_a_ticket_that_nobody_issued_lets_nobody_in(guess: str) -> None:
    tickets = Tickets()
    tickets.issue(Path("/there"), 60)
    assert tickets.admit(guess, Caller()) is None
