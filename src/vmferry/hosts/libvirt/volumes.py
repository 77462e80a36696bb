"""Looks at a block device, LUN or export before anything is written to it."""

from __future__ import annotations

import errno
import os
import subprocess

from vmferry.errors import ImageToolFailed
from vmferry.errors.system import said
from vmferry.model import Url, Volume, Where
from vmferry.qemu import img
from vmferry.qemu.img import missing
from vmferry.qemu.names import canonical, identity_of

LOOK_BYTES = 1 << 20
"""Bytes looked at on both ends: partition tables and file systems begin there, and GPT's copy ends there."""
PATIENCE_S = 20
NFS_CURE = "write nfs://HOST/EXPORT/FILE?uid=NUMBER&gid=NUMBER, of a user who may write the file"


def look(where: Where) -> Volume | None:
    """Return what a block device, LUN or export is, and whether data is on it; None for a path that is none."""
    if isinstance(where, Url):
        return _over_network(where)
    if not where.is_block_device():
        return None
    try:
        fd = os.open(where, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        busy = "a mount or another program has it open"
        return Volume(where, trouble=busy if error.errno == errno.EBUSY else said(error))
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        ends = [os.pread(fd, min(LOOK_BYTES, size), max(0, at)) for at in (0, size - LOOK_BYTES)]
        return Volume(where, size, "there is data in it" if any(map(any, ends)) else None)
    except OSError as error:
        return Volume(where, trouble=said(error))
    finally:
        os.close(fd)


def _over_network(where: Url) -> Volume:
    try:
        where = canonical(where)
        if where.url.startswith("nfs:") and identity_of(where) is None:
            return Volume(where, trouble="it does not say as whom: libvirt needs a user and a group", cure=NFS_CURE)
        size = img.size(where.url, PATIENCE_S)
    except ValueError as error:
        return Volume(where, trouble=str(error))
    except ImageToolFailed as error:
        return _unreadable(where, str(error))
    ends = [_is_zero(where.url, at, min(LOOK_BYTES, size)) for at in (0, max(0, size - LOOK_BYTES))] if size else []
    return Volume(where, size, None if all(ends) else "there is data in it", resizes=where.url.startswith("nfs:"))


def _unreadable(where: Url, reason: str) -> Volume:
    if where.url.startswith("nfs:") and missing(reason):
        cure = f"make it: qemu-img create -f raw '{where}' 0"
        return Volume(where, trouble="there is no such file, and on NFS vmferry makes none", cure=cure)
    return Volume(where, trouble=reason)


def _is_zero(url: str, offset: int, length: int) -> bool:
    command = ("qemu-io", "-r", "-f", "raw", "-c", f"read -P 0 {offset} {length}", url)
    try:
        ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0 and "verification failed" not in ended.stdout + ended.stderr
