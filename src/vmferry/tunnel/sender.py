"""The sending direction of a tunnel: local socket to wire, one thread, one buffer; chooses when to compress."""

from __future__ import annotations

import os
import select
import socket
import time
from dataclasses import dataclass

from vmferry.errors import TunnelCut
from vmferry.tunnel.compression import CompressionChoice, Sent
from vmferry.tunnel.frames import HEAD, MOST, BadFrame, FrameKind, Squeezer, bare
from vmferry.tunnel.wire import Wire

PINGS = 4
"""In the time after which the peer would give us up."""
LEAST_AHEAD = 4 * 1024 * 1024
"""Bytes that may be on their way, compressed, to a program that has not taken them yet. They count expanded."""
AHEAD_S = 1_250_000_000
"""And so many for each second of the round trip, as 10 GBit/s bring."""
TOLD_EACH = LEAST_AHEAD // 8
"""So many that were delivered are told to the peer in one word."""


@dataclass(slots=True)
class Count:
    """Bytes carried in one direction."""

    plain: int = 0  # as the programs at both ends see them
    wire: int = 0  # as they passed the link, heads included, TLS and TCP not


class Waker:
    """Wakes a thread that polls this object's descriptor."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    def ring(self) -> None:
        os.eventfd_write(self._fd, 1)

    def hush(self) -> None:
        """Take in the wake-up, so that the next one is noticed."""
        os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Sender:
    """Sends what a local program writes, until it ends and the peer's bytes are delivered.

    Raw bytes wait for their reader in TCP's window. Compressed bytes are bounded by what the peer acknowledges: a guest
    whose memory compresses well would else wait, stopped, until all that is on its way is expanded and taken.
    """

    def __init__(
        self, local: socket.socket, wire: Wire, bell: Waker, peer_quiet_s: float, *, slow: bool | None
    ) -> None:
        """Prepare to send from `local` to `wire`. `slow`: True compresses at once, False never, None measures."""
        self.count = Count()
        self.ended = False
        self.stopped = False
        """Set before the sockets are hung up, whose silence would else look like an end."""
        self._local, self._wire, self._bell = local, wire, bell
        self._ping_s = peer_quiet_s / PINGS
        self._memory = bytearray(HEAD.size + MOST)
        self._view = memoryview(self._memory)
        self._may_squeeze = slow is not False
        self._squeezer = Squeezer()
        self._choice = CompressionChoice(time.monotonic(), slow=slow is True)
        self._delivered = self._done = False
        self._ahead = LEAST_AHEAD + int(wire.round_trip_s() * AHEAD_S)
        self._handed = self._got = 0  # what went compressed, and what was delivered of it
        self._took = self._told = 0  # what came compressed and was delivered, and what the peer knows of it
        self._bell_alone, self._poll = select.poll(), select.poll()
        self._poll.register(local, select.POLLIN)
        for poll in (self._bell_alone, self._poll):
            poll.register(bell, select.POLLIN)

    def delivered(self) -> None:
        """Tell the peer that all it sent was delivered. Called by the receiving thread."""
        self._delivered = True
        self._bell.ring()

    def took(self, count: int) -> None:
        """Count compressed bytes delivered here, and tell the peer now and then. Called by the receiving thread."""
        self._took += count
        if self._much_to_tell:
            self._bell.ring()

    def got(self, count: int) -> None:
        """Count compressed bytes that the peer says were delivered. Called by the receiving thread. Raises BadFrame."""
        if self._got + count > self._handed:
            raise BadFrame("that it has got more than was sent")
        self._got += count
        self._bell.ring()

    @property
    def _much_to_tell(self) -> bool:
        return self._took - self._told >= TOLD_EACH

    @property
    def _far_ahead(self) -> bool:
        return self._handed - self._got >= self._ahead

    def run(self) -> None:
        """Send until both sides are done and both know it. Raises TunnelCut, OSError."""
        while not (self.ended and self._done):
            if self._delivered and not self._done:
                self._say(FrameKind.DONE)
                self._done = True
            elif self._much_to_tell:
                took = self._took
                self._say(FrameKind.GOT, took - self._told)
                self._told = took
            elif not self._ready():
                self._say(FrameKind.PING)
            elif not (self.ended or self._far_ahead):
                self._carry()

    def _ready(self) -> bool:
        """Wait for something to do. Return False if nothing came for so long that a ping is due. Raises TunnelCut."""
        began = time.monotonic()
        poll = self._bell_alone if self._far_ahead else self._poll
        ready = poll.poll(self._ping_s * 1000)
        self._choice.waited(time.monotonic() - began)
        if any(fd == self._bell.fileno() for fd, _ in ready):
            self._bell.hush()
        if self.stopped:
            raise TunnelCut(reason="it was to end")
        return bool(ready)

    def _carry(self) -> None:
        try:
            count = self._local.recv_into(self._view[HEAD.size :])
        except BlockingIOError:
            return
        except OSError as error:
            raise TunnelCut(reason=f"the program at the socket left: {error}") from error
        if self.stopped:
            raise TunnelCut(reason="it was to end")
        if count:
            self._send(count)
            return
        self._poll.unregister(self._local)
        self._say(FrameKind.END)
        self.ended = True

    def _send(self, count: int) -> None:
        """Send the first `count` bytes of the buffer as one frame, compressed or raw."""
        content = self._view[HEAD.size : HEAD.size + count]
        began = time.monotonic()
        tried_wire, tried_s, frame = None, 0.0, None
        if self._may_squeeze and self._choice.squeeze(count, began):
            frame = self._squeezer.frame(content)
            tried_wire, tried_s = len(frame) if frame else count, time.monotonic() - began
        if frame is None:
            HEAD.pack_into(self._memory, 0, FrameKind.RAW, count, count)
            frame = self._view[: HEAD.size + count]
        else:
            self._handed += count  # before it may be told that they were delivered
        blocked_s = self._wire.send(frame)
        self.count.plain += count
        self.count.wire += len(frame)
        self._choice.sent(Sent(count, len(frame), tried_wire, tried_s, blocked_s), time.monotonic())

    def _say(self, kind: FrameKind, plain: int = 0) -> None:
        self._wire.send(bare(kind, plain))
        self.count.wire += HEAD.size
