#!/usr/bin/python3
"""A QEMU that may not write what lies below its disks when it is started: a stand-in for AppArmor.

libvirt's profile of a VM denies it to write the backing images that its disks have at the start, and (before libvirt
12.1) nothing that libvirt allows later takes that back. Kernels without AppArmor can show the same by mounts: this
program is a VM's <emulator>; it mounts each such image over itself, read-only, in a mount namespace of its own, and
becomes QEMU.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from itertools import pairwise

CONFINED = __file__
"""What to name as <emulator>."""
_QEMU = "/usr/bin/qemu-system-x86_64"
_NEW_NAMESPACE, _NEW_USER = 0x00020000, 0x10000000
_BIND, _REMOUNT, _RDONLY, _REC, _PRIVATE = 0x1000, 0x20, 0x1, 0x4000, 0x40000


def below(arguments: Sequence[str]) -> list[str]:
    """Return the files of all images that are another image's backing image in a QEMU command line."""
    nodes = {}
    for option, value in pairwise(arguments):
        if option == "-blockdev" and value.startswith("{"):
            node = json.loads(value)
            nodes[node["node-name"]] = node
    backing = [nodes[node["backing"]] for node in nodes.values() if isinstance(node.get("backing"), str)]
    storage = [nodes.get(node.get("file"), {}) for node in backing]
    return [node["filename"] for node in storage if "filename" in node]


def _deny(files: Sequence[str]) -> None:
    """Mount the files read-only over themselves, in a mount namespace of this process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str | None, at: str, flags: int) -> None:
        if libc.mount(source.encode() if source else None, at.encode(), None, flags, None) != 0:
            raise OSError(ctypes.get_errno(), "mount", at)

    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_NEW_NAMESPACE) != 0:  # libvirt has taken the right to it: as root of a namespace of one user
        if libc.unshare(_NEW_NAMESPACE | _NEW_USER) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123  # without pathlib it starts sooner
                file.write(text)
    mount(None, "/", _REC | _PRIVATE)
    for path in files:
        mount(path, path, _BIND)
        mount(None, path, _BIND | _REMOUNT | _RDONLY)


if __name__ == "__main__":
    found = below(sys.argv[1:])
    if found:
        _deny(found)
    os.execv(_QEMU, [_QEMU, *sys.argv[1:]])
