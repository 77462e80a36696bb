"""One connection through a tunnel: a local socket, a socket to the other host, two threads, one end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, Thread

from vmferry.errors import TunnelCut, VmferryError
from vmferry.tunnel.frames import BadFrame
from vmferry.tunnel.receiver import Receiver
from vmferry.tunnel.sender import Count, Sender, Waker
from vmferry.tunnel.wire import Wire, hang_up

QUIET_S = 30.0
HELLO_S = 10.0


@dataclass(frozen=True, slots=True)
class TunnelTimeouts:
    """Seconds to wait for the other host."""

    quiet_s: float = QUIET_S  # without a byte from it, before it is taken for gone
    hello_s: float = HELLO_S  # until it has said who it is


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, and the bytes that it carried.

    A reader whose stream ends with its end of file has to look here before it trusts the stream: a tunnel that is cut
    ends the local socket too. A program that is killed while it sends looks like one that is done.
    """

    ticket: str = field(repr=False)
    peer: str
    sent: Count
    received: Count
    error: VmferryError | None = None

    @property
    def whole(self) -> bool:
        """Did both sides deliver all bytes to the last one, and both know it?"""
        return self.error is None


class TunnelConnection:
    """Sockets that end together; any thread may cut them at any moment."""

    def __init__(self) -> None:
        self.error: VmferryError | None = None
        self.sent, self.received = Count(), Count()
        self._lock = Lock()
        self._closed = False
        self._ends: list[socket.socket] = []
        self._bell = Waker()
        self._outward: Sender | None = None

    def hold(self, end: socket.socket) -> None:
        """Add a socket, which ends with the others from now on. Raises the error with which they were cut before."""
        with self._lock:
            self._ends.append(end)
            if self.error:
                raise self.error

    def cut(self, error: VmferryError) -> None:
        """End the connection: when this returns nothing more is delivered here. Only the first error is kept."""
        with self._lock:
            self.error = self.error or error
            if self._closed:
                return
            if self._outward:
                self._outward.stopped = True
            for end in self._ends:
                hang_up(end)
            self._bell.ring()

    def carry(
        self, local: socket.socket, tls: ssl.SSLSocket, quiet_s: float, peer_quiet_s: float, *, slow: bool | None
    ) -> None:
        """Carry bytes both ways until both sides are done or the connection is cut; `error` then has the reason."""
        local.setblocking(False)
        wire = Wire(tls)
        outward = Sender(local, wire, self._bell, peer_quiet_s, slow=slow)
        inward = Receiver(wire, local, outward, quiet_s)
        self.sent, self.received = outward.count, inward.count
        with self._lock:
            self._outward = outward
            if self.error:
                return
        thread = Thread(target=self._run, args=(outward.run,), name="tunnel-out", daemon=True)
        thread.start()
        self._run(inward.run)
        thread.join()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for end in self._ends:
                end.close()
            self._bell.close()

    def _run(self, run: Callable[[], None]) -> None:
        """Call `run` in this thread; if it fails, cut the connection, so that the other thread ends too."""
        error: VmferryError | None = TunnelCut(reason="an error that nobody foresaw, see the log")
        try:
            run()
            error = None
        except BadFrame as bad:
            error = TunnelCut(reason=f"the other host sent {bad}")
        except EOFError:
            error = TunnelCut(reason="the other host ended it in the middle")
        except OSError as failed:
            error = TunnelCut(reason=f"the link failed: {failed.strerror or failed}")
        except TunnelCut as cut:
            error = cut
        finally:
            if error:
                self.cut(error)
