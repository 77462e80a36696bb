"""A TLS connection that two threads use at once: one sends, one receives."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from contextlib import suppress
from threading import Lock

UNSENT = 512 * 1024
"""Bytes that wait in the kernel, at most. More would only make the link's rate hard to see, and pings late."""
_WRITABLE_POLL_S = 1.0
"""Between two looks whether the link was closed, while it takes no bytes."""
_TCP_INFO_BYTES, _MIN_RTT_AT, _MIN_RTT, _NEVER = 152, 148, struct.Struct("=I"), 0xFFFFFFFF
"""Up to tcpi_min_rtt, in microseconds, of struct tcp_info; see linux/tcp.h."""
_KEEPALIVES = 3


class Wire:
    """Sends and receives on a TLS socket without ever waiting inside OpenSSL.

    OpenSSL's connections are not made for two threads at once, and Python locks them only since 3.13, where a
    reader that waits keeps the writer out. So the socket does not block, each call holds a lock, and waiting is done
    outside of it.
    """

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._lock = Lock()
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(tls, select.POLLIN)
        self._writable.register(tls, select.POLLOUT)
        tls.setblocking(False)

    def send(self, content: memoryview) -> float:
        """Send all of the content. Return the seconds in which the link took nothing. Raises OSError."""
        blocked_s = 0.0
        while content:
            try:
                with self._lock:
                    # A try that was not finished has to be repeated with the same bytes: it is, by the same thread.
                    content = content[self._tls.send(content) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                began = time.monotonic()
                self._writable.poll(_WRITABLE_POLL_S * 1000)
                blocked_s += time.monotonic() - began
        return blocked_s

    def receive(self, into: memoryview) -> int:
        """Receive what is there, without waiting. Return how many bytes, perhaps 0. Raises EOFError, OSError.

        EOFError means that there will be no more.
        """
        got = 0
        with self._lock, suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while got < len(into):
                count = self._tls.recv_into(into[got:])  # a record at most, 16 KiB
                if not count:
                    break
                got += count
            else:
                return got
            if not got:
                raise EOFError
        return got

    def round_trip_s(self) -> float:
        """Return the shortest round trip measured on this connection, in seconds; 0 before the first."""
        info = self._tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (micros,) = _MIN_RTT.unpack_from(info, _MIN_RTT_AT)
        return 0.0 if micros == _NEVER else micros / 1e6

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds for something to receive. Return whether there is something."""
        return bool(self._readable.poll(seconds * 1000))


def tune(link: socket.socket, quiet_s: float) -> None:
    """Set TCP's options: no delay of small answers, keepalive to notice a peer that is gone, little unsent data.

    TCP_USER_TIMEOUT is not set: it also ends a connection whose reader takes its time (seen: 3.3 s after the
    window had closed, at 3 s), and a guest's disk may be slow for longer than that. Pings do its work.
    """
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    each_s = max(1, round(quiet_s / (_KEEPALIVES + 1)))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, each_s)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, each_s)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVES)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def unpaced(link: socket.socket) -> None:
    """Replace BBR by cubic on a fast link, since BBR paces each write.

    BBR sets a timer for each TLS record of 16 KiB, which qemu-nbd and OpenSSL write one by one: 0.5 GiB took 1.03 s
    of qemu-nbd's only thread, and 0.53 s with cubic, Linux's default. An administrator who sets BBR has a link in mind
    that is slow or loses packets: on slow links it stays.
    """
    with suppress(OSError):  # another choice is not to be had here
        if link.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(b"bbr"):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def hang_up(end: socket.socket) -> None:
    """Shut a socket down while threads use it: they wake up, and nothing more passes.

    SSLSocket.shutdown would do it too, but drops the TLS layer first: what is sent after that goes in the clear.
    """
    with suppress(OSError):
        socket.socket.shutdown(end, socket.SHUT_RDWR)
