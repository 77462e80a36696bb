"""The receiving direction of a tunnel: wire to local socket, one thread, one buffer; detects a peer that is gone."""

from __future__ import annotations

import select
import socket
import time

from vmferry.errors import TunnelCut
from vmferry.tunnel.frames import HEAD, MOST, BadFrame, Expander, FrameKind, Head, head_of
from vmferry.tunnel.sender import Count, Sender
from vmferry.tunnel.wire import Wire


class Receiver:
    """Delivers what the peer sends, until it sends no more and has acknowledged all of ours.

    A local program that does not read slows the peer down, through TCP's window, and through the acknowledgements of
    compressed frames that were delivered; no more than a frame waits here. Silence counts only while this thread
    listens.
    """

    def __init__(self, wire: Wire, local: socket.socket, outward: Sender, quiet_s: float) -> None:
        self.count = Count()
        self._wire, self._local, self._outward, self._quiet_s = wire, local, outward, quiet_s
        self._view = memoryview(bytearray(MOST))
        self._expander = Expander()
        self._ended = self._acknowledged = False
        self._poll = select.poll()
        self._poll.register(local, select.POLLOUT)

    def run(self) -> None:
        """Receive until the peer has no more to send. Raises BadFrame, TunnelCut, EOFError, OSError."""
        packed = memoryview(bytearray(HEAD.size))
        while not (self._ended and self._acknowledged):
            self._fill(packed)
            head = head_of(packed)
            self.count.wire += HEAD.size + head.wire
            self._take(head)

    def _take(self, head: Head) -> None:
        if head.kind is FrameKind.DONE:
            if self._acknowledged or not self._outward.ended:
                raise BadFrame("it has all that was sent, it says, while more is to come")
            self._acknowledged = True
        elif head.kind is FrameKind.GOT:
            self._outward.got(head.plain)
        elif head.kind is not FrameKind.PING:
            if self._ended:
                raise BadFrame("more after the end")
            self._advance(head)

    def _advance(self, head: Head) -> None:
        """Handle a frame that carries the peer's bytes or ends them: RAW, ZSTD or END."""
        if head.kind is FrameKind.END:
            self._ended = True
            self._local.shutdown(socket.SHUT_WR)
            self._outward.delivered()
        elif head.kind is FrameKind.RAW:
            self._pass_on(head.wire)
        else:
            squeezed = self._view[: head.wire]
            self._fill(squeezed)
            self._deliver(self._expander.expand(squeezed, head.plain))
            self._outward.took(head.plain)

    def _pass_on(self, length: int) -> None:
        """Deliver raw bytes as they come: on a slow link the end of their frame may be seconds later."""
        given = have = 0
        while have < length:
            got = self._wire.receive(self._view[have:length])
            have += got
            if not got and have > given:
                self._deliver(self._view[given:have])
                given = have
            elif not got:
                self._wait()
        self._deliver(self._view[given:have])

    def _fill(self, into: memoryview) -> None:
        have = 0
        while have < len(into):
            got = self._wire.receive(into[have:])
            have += got
            if not got:
                self._wait()

    def _wait(self) -> None:
        began = time.monotonic()
        while not self._wire.wait(max(0.0, began + self._quiet_s - time.monotonic())):
            if time.monotonic() >= began + self._quiet_s:
                raise TunnelCut(reason=f"nothing was heard of the other host for {self._quiet_s:g} s")

    def _deliver(self, content: memoryview) -> None:
        while content:
            try:
                count = self._local.send(content)
            except BlockingIOError:
                self._poll.poll()  # a cut wakes it
                continue
            except OSError as error:
                raise TunnelCut(reason=f"the program at the socket left: {error}") from error
            content = content[count:]
            self.count.plain += count
