"""One connection to an NBD server, of which each call ends in bounded time, whatever the server does."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

import nbd

CONTEXT = "base:allocation"
QUIET_S = 30.0
"""Without a byte from the server for so long, a call fails; the copy can go on later."""
LONGEST_S = 600.0
"""A call ends after this even if a byte comes now and then."""
GOODBYE_S = 5.0
"""All is written and flushed by then: a server that does not say goodbye costs no more than this."""
_SILENCE_POLL_MS = 1000
"""Between two looks how long the server has been silent; an answer wakes the thread at once."""

Connect = Callable[[nbd.NBD], None]
Parts = list[tuple[memoryview, int]]
Ask = Callable[[nbd.Buffer, int], int]


class NbdConnection:
    """A libnbd handle. After the first call that the server did not answer, the connection is given up."""

    def __init__(self) -> None:
        self._handle: nbd.NBD | None = nbd.NBD()
        self._tcp: socket.socket | None = None
        self._broke = False

    @classmethod
    @contextmanager
    def opened(cls, connect: Connect) -> Iterator[Self]:
        """Connect as `connect` says, wait until ready, disconnect afterwards. A context manager. Raises OSError."""
        made = cls()
        try:
            with failing():
                made._begin(connect)
            yield made
            made._end()
        finally:
            made._lose()

    @property
    def handle(self) -> nbd.NBD:
        """The handle, or OSError; do not keep it: libnbd closes the connection when its last reference goes."""
        if self._handle is None:
            raise OSError(errno.ENOTCONN, "the connection to the NBD server is lost")
        return self._handle

    @property
    def broke(self) -> bool:
        """Did the server end the connection?"""
        return self._broke or (self._handle is not None and self._is_over())

    def move(self, ask: Ask, parts: Parts) -> None:
        """Send the requests to read or write all the parts, and wait for them. Raises nbd.Error, OSError."""
        before = _references(parts)
        try:
            commands = [ask(nbd.Buffer.from_buffer(part), offset) for part, offset in parts]
        except nbd.Error:
            self._lose()  # those asked for before are under way
            raise
        try:
            self.wait_for(commands)
        finally:
            if self._handle is not None:  # else a request may still be under way, and needs its buffer
                _give_back(parts, before)

    def wait_for(self, commands: list[int]) -> None:
        """Wait until all of these commands are done, then raise the first one's error. Raises nbd.Error, OSError."""
        failed = list[nbd.Error]()

        def done() -> bool:
            # One look for all: over TLS the wait ends with each record of 16 KiB; eight looks were a tenth of our time.
            return not self.handle.aio_in_flight()

        try:
            self._until(done)
            for command in commands:
                try:
                    if not self.handle.aio_command_completed(command):
                        raise OSError(errno.EIO, "a request to the NBD server is neither under way nor done")
                except nbd.Error as error:
                    failed.append(error)
        except (nbd.Error, OSError):
            # Replies that come late would be written to buffers that are used for something else by then.
            self._lose()
            raise
        if failed:
            raise failed[0]

    def _begin(self, connect: Connect) -> None:
        self.handle.add_meta_context(CONTEXT)
        connect(self.handle)
        self._until(lambda: not self._connecting())
        if not self.handle.aio_is_ready():
            raise OSError(errno.ECONNREFUSED, "the NBD server ended the connection while it began")

    def _connecting(self) -> bool:
        if self._tcp is None:
            self._tcp = _tcp_of(self.handle)
        return bool(self.handle.aio_is_connecting())

    def _until(self, done: Callable[[], bool], quiet_s: float | None = None) -> None:
        quiet_s = QUIET_S if quiet_s is None else quiet_s
        began = heard = time.monotonic()
        while not done():
            if self._tcp is not None:
                # qemu-nbd keeps a small answer back until we have acknowledged the last one, and the kernel does
                # that 40 ms late: 90 ms for each connection. It forgets the option after a few packets.
                self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if self.handle.poll(_SILENCE_POLL_MS):
                heard = time.monotonic()
            now = time.monotonic()
            if now - heard > quiet_s or now - began > LONGEST_S:
                raise OSError(errno.ETIMEDOUT, f"the NBD server did not answer for {now - heard:.0f} s")

    def _lose(self) -> None:
        self._broke = self.broke
        self._handle = None
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None

    def _end(self) -> None:
        """Disconnect, so that a server of one connection is free for the next; nbd_shutdown(3) would wait for ever."""
        if self._handle is None or not self._handle.aio_is_ready():
            return
        with suppress(nbd.Error, OSError):
            self._handle.aio_disconnect()
            self._until(self._is_over, GOODBYE_S)

    def _is_over(self) -> bool:
        return bool(self.handle.aio_is_closed() or self.handle.aio_is_dead())


def _tcp_of(handle: nbd.NBD) -> socket.socket | None:
    """Return a duplicate of the handle's socket. None if it is not connected yet, or is not TCP."""
    with suppress(nbd.Error), ExitStack() as stack:
        found = stack.enter_context(socket.socket(fileno=os.dup(handle.aio_get_fd())))
        if found.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # not yet, or another address is tried next
                found.getpeername()
                stack.pop_all()
                return found
    return None


@contextmanager
def failing(link: NbdConnection | None = None) -> Iterator[None]:
    """Turn libnbd's error into an OSError with the server's errno. A context manager.

    An error without errno, by which TLS reports a broken connection, becomes ECONNRESET. So does EINVAL on a link that
    broke: so libnbd refuses the next request.
    """
    try:
        yield
    except nbd.Error as error:
        refused = error.errnum == errno.EINVAL and link is not None and link.broke
        raise OSError(errno.ECONNRESET if refused else error.errnum or errno.ECONNRESET, error.string) from None


def _references(parts: Parts) -> list[int]:
    """Return the reference count of each part; a function of its own, so that two counts can be compared."""
    return [sys.getrefcount(part) for part, _ in parts]


def _give_back(parts: Parts, before: list[int]) -> None:
    """Drop the references that libnbd's binding leaks: up to 1.14 at least, it keeps one for each request.

    Without this the memory of each stream, 4 MiB, would stay for ever.
    """
    for (part, _), known, now in zip(parts, before, _references(parts), strict=True):
        for _ in range(now - known):
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(part))
