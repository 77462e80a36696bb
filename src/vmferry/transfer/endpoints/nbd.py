"""An NBD export as a medium, through libnbd, with several connections and bounded waits.

Follows the NBD protocol (doc/proto.md of the NetworkBlockDevice project) and libnbd(3).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import LifoQueue

import nbd

from vmferry.transfer.endpoints.interface import Can
from vmferry.transfer.endpoints.nbd_connection import CONTEXT, Connect, NbdConnection, failing
from vmferry.transfer.endpoints.raw_file import ALIGN
from vmferry.transfer.ranges import CHUNK, Range, align, clip, pieces

_MAX_STATUS = 1 << 30  # the count of a block status request has 32 bits
_MAX_UNTOLD = 32 << 20  # what the protocol lets a client send to a server that tells no limit
_REQUEST = 512 << 10
_STATE_ZERO = 2  # NBD_STATE_ZERO of base:allocation
_ZEROS = bytes(CHUNK)

Explain = Callable[[OSError], OSError]


def _as_it_is(error: OSError) -> OSError:
    return error


class NbdLink:
    """Several connections to one export; each call borrows one.

    Only a server that says that its connections see each other's writes (multi-conn) gets more than one.
    Measured on four connections to a qemu-nbd, unix socket: requests of half a MiB, eight in flight on each, cost
    the server 0.6 to 0.9 CPU seconds a GiB, requests of a whole chunk 1.0 to 1.15, since it maps and clears new
    memory for each of those. We need the same for both.
    """

    def __init__(self, connections: list[NbdConnection], explain: Explain) -> None:
        self._explain = explain
        first = connections[0].handle
        with failing():
            self.size: int = first.get_size()
            self.can = _can(first)
            self._smallest = max(1, first.get_block_size(nbd.SIZE_MINIMUM))
            largest = first.get_block_size(nbd.SIZE_MAXIMUM) or _MAX_UNTOLD
        if self._smallest > ALIGN:
            raise OSError(errno.EINVAL, f"its smallest block has {self._smallest} bytes, at most {ALIGN} are possible")
        self._request = min(_REQUEST, largest // ALIGN * ALIGN) or ALIGN
        self._free: LifoQueue[NbdConnection] = LifoQueue()
        for connection in connections:
            self._free.put(connection)

    def extents(self, within: Range) -> Iterator[Range]:
        """Yield the ranges that the server does not report as zero, widened to 4096 bytes."""
        if Can.EXTENTS not in self.can:
            if within.length:
                yield within
            return
        yield from clip(align(self._data(within), ALIGN, self.size), within)

    def read(self, offset: int, into: memoryview) -> None:
        whole = self._whole(offset, len(into))
        if whole.length > len(into):
            body = len(into) - len(into) % self._smallest
            tail = bytearray(self._smallest)
            self._read(Range(offset, offset + body), into[:body])
            self._read(Range(offset + body, whole.end), memoryview(tail))
            into[body:] = tail[: len(into) - body]
            return
        self._read(whole, into)

    def write(self, offset: int, content: memoryview) -> None:
        """Write `content`; if it ends within one of the server's smallest blocks, fill that block up with zeros."""
        body = len(content) - len(content) % self._smallest
        self._write(Range(offset, offset + body), content[:body])
        if body < len(content):
            tail = bytes(content[body:]).ljust(self._smallest, b"\0")
            self._write(self._whole(offset + body, len(tail)), memoryview(tail))

    def zero(self, where: Range) -> None:
        """Make the range read as zero, perhaps as a hole; to a server without such a request, write zeros."""
        whole = self._whole(where.start, where.length)
        if Can.ZERO not in self.can:
            for piece in pieces(whole, lambda: CHUNK):
                self._write(piece, memoryview(_ZEROS)[: piece.length])
            return
        with self._borrowed() as link:
            for piece in pieces(whole, lambda: CHUNK):
                link.wait_for([link.handle.aio_zero(piece.length, piece.start)])

    def flush(self) -> None:
        if Can.FLUSH in self.can:
            with self._borrowed() as link:
                link.wait_for([link.handle.aio_flush()])

    def _read(self, where: Range, into: memoryview) -> None:
        with self._borrowed() as link:
            link.move(link.handle.aio_pread, self._requests(where, into))

    def _write(self, where: Range, content: memoryview) -> None:
        with self._borrowed() as link:
            link.move(link.handle.aio_pwrite, self._requests(where, content))

    def _data(self, within: Range) -> Iterator[Range]:
        start = within.start
        while start < within.end:
            reported: list[int] = []
            wanted = self._whole(start, min(within.end - start, _MAX_STATUS))
            with self._borrowed() as link:
                link.wait_for([link.handle.aio_block_status(wanted.length, start, _noting(reported))])
            for length, flags in zip(reported[::2], reported[1::2], strict=False):
                if not flags & _STATE_ZERO:
                    yield Range(start, start + length)
                start += length
            if not sum(reported[::2]):  # it told nothing of it, so it may be data
                yield wanted
                start = wanted.end

    def _requests(self, where: Range, content: memoryview) -> list[tuple[memoryview, int]]:
        """Split the content into requests of a size that the server takes. Return each part with its offset."""
        parts = pieces(Range(0, where.length), lambda: self._request)
        return [(content[part.start : part.end], where.start + part.start) for part in parts]

    def _whole(self, start: int, length: int) -> Range:
        """Return the range of `length` bytes from `start`, its end rounded up to the server's smallest block."""
        return Range(start, start + -(-length // self._smallest) * self._smallest)

    @contextmanager
    def _borrowed(self) -> Iterator[NbdConnection]:
        link = self._free.get()
        try:
            with failing(link):
                yield link
        except OSError as error:
            explained = self._explain(error)
            if explained is error:
                raise  # an error that is its own cause keeps all that its traceback holds, the connection too
            raise explained from error
        finally:
            self._free.put(link)


@contextmanager
def nbd_link(connect: Connect, count: int, explain: Explain = _as_it_is) -> Iterator[NbdLink]:
    """Open at most `count` connections to an NBD export, and close them afterwards. A context manager.

    `explain` may add detail to an error. Raises OSError.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(NbdConnection.opened(connect))]
        with failing():
            several = connections[0].handle.can_multi_conn()
        if several:
            connections += [stack.enter_context(NbdConnection.opened(connect)) for _ in range(count - 1)]
        yield NbdLink(connections, explain)


def _can(handle: nbd.NBD) -> Can:
    able = Can.DIRECT
    for ability, known in (
        (Can.EXTENTS, handle.can_meta_context(CONTEXT)),
        (Can.ZERO, not handle.is_read_only() and handle.can_zero()),
        (Can.FLUSH, handle.can_flush()),
        (Can.SHARE, handle.can_multi_conn()),
    ):
        able |= ability if known else Can(0)
    return able


def _noting(told: list[int]) -> Callable[[str, int, list[int], object], int]:
    """Return a block status callback for libnbd that appends the entries of the requested context to `told`."""

    def note(context: str, offset: int, entries: list[int], error: object) -> int:
        if context == CONTEXT and not told:
            told.extend(entries)
        return 0

    return note
