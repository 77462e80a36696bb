"""Headers that were read, kept while their files have not changed: with many VMs the same ones are asked for often."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from vmferry.hosts.libvirt import headers
from vmferry.hosts.libvirt.headers import NOTHING, Header

MOST = 65536
SETTLED_NS = 2_000_000_000
"""Nanoseconds; a file written more recently may be written again without looking newer."""

Facts = tuple[int, int, int, int]


class HeaderCache:
    """Headers of files by path, since a relative name in a header depends on it."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[Facts, Header]] = OrderedDict()
        self._lock = Lock()

    def of(self, path: Path) -> Header:
        """Return the header of a file or device; NOTHING, unread, for anything else. Raises OSError, BadHeader."""
        facts = _facts(path)
        if facts is None and not (path.is_file() or path.is_block_device()):
            return NOTHING
        with self._lock:
            known = self._known.get(path)
        if facts is not None and known is not None and known[0] == facts:
            return known[1]
        header = headers.read(path)
        if facts is not None:
            self._keep(path, facts, header)
        return header

    def _keep(self, path: Path, facts: Facts, header: Header) -> None:
        with self._lock:
            self._known[path] = facts, header
            self._known.move_to_end(path)
            while len(self._known) > MOST:
                self._known.popitem(last=False)


def _facts(path: Path) -> Facts | None:
    """Return facts that differ once a file has changed; None where that cannot be told, as of a device."""
    if not path.is_file():
        return None
    status = path.stat()
    newest_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    if time.time_ns() - newest_ns < SETTLED_NS:
        return None
    return status.st_dev, status.st_ino, status.st_size, newest_ns


HEADERS = HeaderCache()
