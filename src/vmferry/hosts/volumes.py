"""Looks at a block device, LUN or export before anything is written to it."""

from __future__ import annotations

import errno
import os
import subprocess

from vmferry.errors import ImageToolFailed
from vmferry.hosts import images
from vmferry.hosts.qemu_names import canonical
from vmferry.model import Url, Volume, Where

LOOK_BYTES = 1 << 20
"""Both ends are looked at: partition tables and file systems begin there, and GPT's copy ends there."""
PATIENCE_S = 20


def look(where: Where) -> Volume | None:
    """What it is, and what is on it; None for a path that is no block device."""
    if isinstance(where, Url):
        return _over_network(where)
    if not where.is_block_device():
        return None
    try:
        fd = os.open(where, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        busy = "a mount or another program has it open"
        return Volume(where, trouble=busy if error.errno == errno.EBUSY else error.strerror)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        ends = [os.pread(fd, min(LOOK_BYTES, size), max(0, at)) for at in (0, size - LOOK_BYTES)]
        return Volume(where, size, "there is data in it" if any(map(any, ends)) else None)
    except OSError as error:
        return Volume(where, trouble=error.strerror)
    finally:
        os.close(fd)


def _over_network(where: Url) -> Volume:
    if where.url.startswith("nfs:"):
        return Volume(where, trouble="files on NFS are moved through a mount: mount the export and name the folder")
    try:
        where = canonical(where)
        size = images.size(where.url, PATIENCE_S)
    except (ValueError, ImageToolFailed) as error:
        return Volume(where, trouble=str(error))
    ends = [_is_zero(where.url, at, min(LOOK_BYTES, size)) for at in (0, max(0, size - LOOK_BYTES))]
    return Volume(where, size, None if all(ends) else "there is data in it")


def _is_zero(url: str, offset: int, length: int) -> bool:
    command = ("qemu-io", "-r", "-f", "raw", "-c", f"read -P 0 {offset} {length}", url)
    try:
        told = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return False
    return told.returncode == 0 and "verification failed" not in told.stdout + told.stderr
