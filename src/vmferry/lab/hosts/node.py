"""A node of a lab: a folder, namespaces of its own, and the keeper process that holds them.

A host is a node with libvirtd; in a lab of several hosts the manager's node and the switch are nodes without it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from vmferry.errors import LabLate, LabPlaceUnfit, LabProgramFailed, NoLab
from vmferry.lab.hosts.network import names
from vmferry.lab.hosts.processes import in_lab, kill_all, pid_in, signal_in_lab
from vmferry.lab.hosts.record import LabRecord, read_hosts, read_record, write_record
from vmferry.lab.hosts.storage import remove
from vmferry.lab.programs import program, run, spawn, wait_for

STOP_DEADLINE_S = 30


class LabNode:
    """A node at one folder, running or not; any process may create this object and use it."""

    def __init__(self, at: Path) -> None:
        self.at = at.resolve()  # mountinfo and the lab's namespaces know no symbolic links
        self._children: list[subprocess.Popen[bytes]] = []

    def keep(self, record: LabRecord) -> Self:
        """Make and start this node, without libvirtd. Raises LabPlaceUnfit, LabProgramFailed, LabLate."""
        self.at.mkdir()
        write_record(self.at, record)
        (self.at / "etc").mkdir()  # by which its processes are known
        self._start_keeper()
        return self

    def down(self) -> None:
        """End the node's processes and remove its folder; no error if it is gone, or half gone."""
        record = read_record(self.at)
        if record is None:
            return
        kill_all(self.at, first=pid_in(self._libvirtd_pid_file), last=record.keeper_pid)
        for child in self._children:
            child.wait()
        self._children.clear()
        remove(self.at)

    @property
    def record(self) -> LabRecord:
        """The record that the node wrote about itself. Raises NoLab if there is none."""
        record = read_record(self.at)
        if record is None:
            raise NoLab(at=self.at)
        return record

    @property
    def exists(self) -> bool:
        """Is there a node at this folder, running or left over?"""
        return read_record(self.at) is not None

    @property
    def running(self) -> bool:
        """Does the keeper run? libvirtd may still be down."""
        record = read_record(self.at)
        return bool(record and record.keeper_pid and in_lab(record.keeper_pid, self.at))

    @property
    def keeper_pid(self) -> int:
        """The process id of the keeper, which holds the namespaces. Raises NoLab if it does not run."""
        pid = self.record.keeper_pid
        if pid is None or not in_lab(pid, self.at):
            raise NoLab(at=self.at)
        return pid

    def inside(self, *argv: str) -> list[str]:
        """Return the command line that runs a program inside the node's namespaces, with the node's libvirt folders."""
        host_name = ("-u",) if self.record.name else ()
        return [program("nsenter"), "-t", str(self.keeper_pid), "-m", "-n", *host_name, *argv]

    def run(self, *argv: str | Path) -> str:
        """Run a program inside the node to its end and return its output. Raises LabProgramFailed when it fails."""
        return run(*self.inside(program(str(argv[0])), *map(str, argv[1:])))

    # -- programs that stay: an agent, a server

    def spawn_inside(
        self, words: Sequence[str], name: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program inside the node that ends with the lab, under a `name`, by which other methods know it.

        Its output goes to `log_of(name)`. `environment` is added to this process's own. Raises LabProgramFailed when a
        program of that name runs.
        """
        if self.pid_of(name):
            raise LabProgramFailed(program=name, reason="it runs already")
        self._programs.mkdir(exist_ok=True)
        started = spawn(self.inside(*words), self.log_of(name), environment)
        self._children.append(started)
        record = {"pid": started.pid, "words": list(words), "environment": dict(environment or {})}
        new = self._programs / f"{name}.json.new"
        new.write_text(json.dumps(record, indent=2))
        new.replace(self._programs / f"{name}.json")
        return started

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a program again that `spawn_inside` started before, with the same command line and environment."""
        record = self._told(name)
        if record is None:
            raise LabProgramFailed(program=name, reason="nothing of that name was ever started here")
        return self.spawn_inside(record["words"], name, record["environment"])

    def kill(self, name: str) -> None:
        """SIGKILL a program started by `spawn_inside` and wait until it has ended; no error if it does not run."""
        self._end(name, signal.SIGKILL)

    def stop(self, name: str) -> None:
        """SIGTERM a program started by `spawn_inside` and wait until it has ended. Raises LabLate when it does not."""
        self._end(name, signal.SIGTERM)

    def freeze(self, name: str) -> None:
        """SIGSTOP a program started by `spawn_inside`: it stands still, its connections open, until `wake`."""
        self._signal(name, signal.SIGSTOP)

    def wake(self, name: str) -> None:
        """SIGCONT a program that `freeze` stopped: it goes on, and does not know for how long it stood still."""
        self._signal(name, signal.SIGCONT)

    def pid_of(self, name: str) -> int | None:
        """Return the process id of a program started by `spawn_inside`; None while it does not run."""
        record = self._told(name)
        return record["pid"] if record and in_lab(record["pid"], self.at) else None

    def log_of(self, name: str) -> Path:
        """Return the file with all output of a program, of all its starts."""
        return self._programs / f"{name}.log"

    def _signal(self, name: str, number: signal.Signals) -> None:
        if pid := self.pid_of(name):
            signal_in_lab(pid, self.at, number)

    def _end(self, name: str, number: signal.Signals) -> None:
        pid = self.pid_of(name)
        if pid is None:
            return
        if not signal_in_lab(pid, self.at, number, STOP_DEADLINE_S):
            raise LabLate(deadline_s=STOP_DEADLINE_S, what=f"{name} to end", evidence=self.log_of(name))
        for child in self._children:
            if child.pid == pid:
                child.wait()

    def _told(self, name: str) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return dict(json.loads((self._programs / f"{name}.json").read_text()))
        return None

    @property
    def _programs(self) -> Path:
        return self.at / "programs"

    # -- its keeper

    def _start_keeper(self) -> None:
        """Start the keeper and wait until its namespaces are furnished. Raises LabProgramFailed if it ends instead."""
        if hosts := read_hosts(Path(self.record.within or self.at)):
            (self.at / "names").write_text(names(hosts.hosts))
        namespaces = [program("unshare"), "--mount", "--net", "--uts", "--propagation", "slave", "--"]
        words = [*namespaces, sys.executable, "-m", "vmferry.lab.hosts.subreaper", str(self.at)]
        log = self.at / "keeper.log"
        keeper = spawn(words, log)
        self._children.append(keeper)
        write_record(self.at, self.record.with_(keeper_pid=keeper.pid))
        furnished = self.at / "furnished"
        wait_for(lambda: keeper.poll() is not None or furnished.exists(), "the lab's namespaces", log=log)
        if keeper.poll() is not None:
            raise LabProgramFailed(program="the keeper", reason=log.read_text()[-500:])

    @property
    def _libvirtd_pid_file(self) -> Path:
        return self.at / "run/libvirtd.pid"


def fit(at: Path) -> None:
    """Raise LabPlaceUnfit if the namespaces of a lab would hide its own folder."""
    if at.is_relative_to("/run") or at.is_relative_to("/var/run"):
        raise LabPlaceUnfit(at=at, reason="the lab has a /run of its own, which would hide it")


def claim(at: Path) -> None:
    """Make the folder of a new lab, or take an empty one. Raises LabPlaceUnfit if it holds something."""
    at.mkdir(parents=True, exist_ok=True)
    if any(os.scandir(at)):
        raise LabPlaceUnfit(at=at, reason="it holds files that are not a lab's")


def guard(at: Path, lab_id: str, owner_pid: int) -> subprocess.Popen[bytes]:
    """Start the process that takes the lab down when the process `owner_pid` has ended."""
    words = [sys.executable, "-m", "vmferry.lab.hosts.watchdog", str(at), lab_id, str(owner_pid)]
    return spawn(words, Path(os.devnull))
