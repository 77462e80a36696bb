"""Runs the programs that the lab is made of, and waits for their effects."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vmferry.errors import LabLate, LabNeeds, LabProgramFailed

T = TypeVar("T")
PACKAGES = {
    "libvirtd": "libvirt-daemon-system",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "gcc": "gcc libc6-dev",
    "ldd": "libc-bin",
    "qemu-ga": "qemu-guest-agent",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "ganesha.nfsd": "nfs-ganesha nfs-ganesha-vfs",
    "nbdkit": "nbdkit",
    "tgtd": "tgt",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "tc": "iproute2",
}
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def program(name: str) -> str:
    """Return the full path of a program. Raises LabNeeds, with the package to install, if it is missing."""
    found = shutil.which(name, path=SEARCH)
    if not found:
        raise LabNeeds(missing=name, cure=f"apt-get install {PACKAGES.get(name, name)}")
    return found


def run(*argv: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return its output. Raises LabProgramFailed, with what it printed, if it fails."""
    words = [program(str(argv[0])), *map(str, argv[1:])]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise LabProgramFailed(program=" ".join(map(str, argv)), reason=reason)
    return done.stdout


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that outlives a Ctrl-C at this one's terminal; its output is appended to `log`.

    `environment` is added to this process's own.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            cwd="/",
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def wait_for(condition: Callable[[], T], what: str, deadline_s: float = 30, log: Path | None = None) -> T:
    """Poll `condition` until it is true; return its value. Raises LabLate, with the end of `log`, at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise LabLate(deadline_s=deadline_s, what=what, evidence=_last_lines(log))
        time.sleep(0.02)


def _last_lines(log: Path | None) -> str:
    if log is None:
        return "nothing more is known"
    if not log.exists():
        return f"{log} was not written"
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return f"{log} ends with {' | '.join(lines) or 'nothing'}"
