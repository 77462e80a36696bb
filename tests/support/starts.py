"""A libvirtd that is held in the midst of a start of a VM, and what it leaves if it is killed then."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.lab import LabHost, wait_for
from vmferry.lab.vmferry_command import ENDS, VmferryCommand

HALF_STARTED = "but it has no QEMU there"
FORGOTTEN = "but its QEMU runs"
"""What a job says of a VM that libvirtd has lost track of: see hosts/libvirt/stale_state.py."""
HOOK = """#!/bin/sh
[ "$2" = started ] || exit 0
cd /etc/libvirt/hooks
: > reached
while [ -e hold ]; do sleep 0.05; done
"""


@contextmanager
def held(host: LabHost) -> Iterator[Path]:
    """By a hook of its host's own, while this is open. Gives the file that shows that it has come so far."""
    hooks = host.at / "etc/hooks"
    hooks.mkdir()
    try:
        (hooks / "hold").touch()
        (hooks / "qemu").write_text(HOOK)
        (hooks / "qemu").chmod(0o755)
        restart(host)  # it looks for hooks as it starts
        yield hooks / "reached"
    finally:
        shutil.rmtree(hooks)


def half(host: LabHost, vm: str) -> None:
    """Make of a start that is held, and whose libvirtd was killed, one as between libvirtd's note and the process.

    That takes libvirtd a few ms, and no hook holds it there: the note without a process id is written here by hand.
    """
    host.kill_qemu(vm)
    note = host.at / "run/libvirt/qemu" / f"{vm}.xml"
    starting = "<domstatus state='paused' reason='starting up' pid='0'>"
    note.write_text(re.sub("<domstatus [^>]*>", starting, note.read_text(), count=1))


def forget(host: LabHost, vm: str) -> None:
    """Spoil libvirtd's note of a VM, which is down, as it does itself if it is killed at the end of a merge."""
    note = host.at / "run/libvirt/qemu" / f"{vm}.xml"
    note.write_text(note.read_text().replace("<domstatus ", "<unreadable ", 1))


def restart(host: LabHost) -> None:
    host.kill_libvirtd()
    host.start_libvirtd()


def told(ferry: VmferryCommand, job: str, words: str) -> bool:
    """Does a job that goes on say so of what it does?"""
    return words in str(ferry.job(job)["progress"])


def follow(ferry: VmferryCommand, job: str, host: LabHost, vm: str) -> bool:
    """What an operator does, who follows what a job says that waits. Returns whether he had to end the guest."""
    asks = {HALF_STARTED: lambda: restart(host), FORGOTTEN: lambda: host.kill_qemu(vm)}

    def asked() -> str:
        if ferry.state(job) in ENDS:
            return "nothing"
        now = str(ferry.job(job)["progress"])
        return next((words for words in asks if words in now), "")

    words = wait_for(asked, f"job {job} to end, or to ask for something", 180)
    asks.get(words, lambda: None)()
    return words == FORGOTTEN
