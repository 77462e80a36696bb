"""qemu-nbd as reader and writer of QEMU's formats and protocols: started for one call, gone after it."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import nbd

from vmferry.errors import BadPlace, ExportFailed
from vmferry.qemu.img import image_name
from vmferry.qemu.nbd import end, start
from vmferry.qemu.places import Place
from vmferry.transfer.endpoints.nbd import NbdLink, nbd_link

LOCKED_S = 5.0
_LOCK_RETRY_S = 0.25
"""Between tries to open an image that another program has locked for a moment."""
_LAST_WORDS_S = 1.0
_LOST = {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN}
_NO_DIRECT = "O_DIRECT"
_LOCKED = "Failed to get"  # QEMU's words: Failed to get "write" lock; Failed to get shared "write" lock


@contextmanager
def exported(place: Place, connections: int, *, writable: bool) -> Iterator[NbdLink]:
    """Open the content of an image through a qemu-nbd, past the page cache. A context manager.

    qemu-nbd dies with this process. QEMU's image locks hold: what a VM has open for writing is refused. Enter and leave
    it in one thread: the kernel ends qemu-nbd with the thread that started it. Raises ExportFailed, BadPlace.
    """
    if place.encrypted:
        raise BadPlace(place=place.shown, reason="over TLS only raw can be read and written")
    with ExitStack() as stack:
        yield _opened(_Wanted(place, connections, writable), stack)


class _Wanted(NamedTuple):
    place: Place
    connections: int
    writable: bool


class _QemuNbd:
    """A running qemu-nbd, with connected sockets that wait in its queue."""

    def __init__(self, wanted: _Wanted, cache: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._sockets: list[socket.socket] = []
        # The socket's folder is gone once all our connections are in the queue: a kill leaves nothing behind.
        folder = tempfile.mkdtemp(prefix="vmferry-")
        try:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(f"{folder}/nbd")
                listening.listen(wanted.connections)
                for _ in range(wanted.connections):
                    waiting = socket.socket(socket.AF_UNIX)
                    self._sockets.append(waiting)
                    waiting.connect(f"{folder}/nbd")
                self._process = start(_command(wanted, cache), listening, self._said)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def connect(self, handle: nbd.NBD) -> None:
        """Hand one of the connected sockets to libnbd, which closes it."""
        handle.aio_connect_socket(self._sockets.pop().detach())

    def explain(self, error: OSError) -> OSError:
        """Return the error of a connection, with qemu-nbd's exit code and last words if it has ended."""
        if error.errno in _LOST:
            with suppress(subprocess.TimeoutExpired):  # its sockets are closed before it can be waited for
                self._process.wait(_LAST_WORDS_S)
        code = self._process.poll()
        return error if code is None else OSError(error.errno, f"qemu-nbd ended with {code}: {self._last_words()}")

    def reason(self, error: OSError) -> str:
        """Return why qemu-nbd could not start: its last words if it ended, else the error's text."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
            return self._last_words()
        return error.strerror or str(error)

    def end(self) -> None:
        """End qemu-nbd and reap it."""
        for each in self._sockets:
            each.close()
        end(self._process)
        self._said.close()

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("qemu-nbd: ") if lines else "it gave no reason"


def _opened(wanted: _Wanted, stack: ExitStack) -> NbdLink:
    """Start qemu-nbd and connect to it; on a tmpfs, which has no O_DIRECT, with the page cache. Raises ExportFailed.

    While the image is locked, it tries again for LOCKED_S: the lock may be held by a qemu-nbd that is dying with a
    killed process of vmferry.
    """
    cache, until = "none", time.monotonic() + LOCKED_S
    while True:
        with ExitStack() as attempt:
            server = _QemuNbd(wanted, cache)
            attempt.callback(server.end)
            try:
                link = attempt.enter_context(nbd_link(server.connect, wanted.connections, server.explain))
            except OSError as error:
                reason = server.reason(error)
                if _NO_DIRECT in reason and cache == "none":
                    cache = "writeback"
                elif _LOCKED in reason and time.monotonic() < until:
                    time.sleep(_LOCK_RETRY_S)
                else:
                    raise ExportFailed(path=wanted.place.shown, reason=reason) from error
                continue
            stack.push(attempt.pop_all())
            return link


def _command(wanted: _Wanted, cache: str) -> list[str]:
    """Return the command line; it names the image so that neither format nor path is guessed."""
    aio = "native" if cache == "none" else "threads"
    words = ["qemu-nbd", "--persistent", f"--shared={wanted.connections}", f"--cache={cache}", f"--aio={aio}"]
    words += ["--discard=unmap", "--detect-zeroes=off", f"--format={wanted.place.format}"]
    if not wanted.writable:
        words.append("--read-only")
    return [*words, "--", image_name(wanted.place)]
