"""Runs vmferry's own command, as a person would, with a state folder of its own: for tests and the demo."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vmferry.lab.programs import wait_for

COMMAND = (str(Path(sys.executable).with_name("vmferry")),)
DEADLINE_S = 240.0
MOVES = {"migrate-storage", "migrate"}
ENDS = ("done", "undone", "failed", "stuck")
"""The states of a job that does nothing any more, or waits for an operator."""


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


class VmferryCommand:
    """`vmferry --state STATE --connect URI ...`; at the end of the with block its worker is ended by its process id."""

    def __init__(
        self, state: Path, uri: str, inside: Sequence[str] = (), records: str = "", priority: str = ""
    ) -> None:
        """Prepare commands on this state folder and libvirt URI.

        `inside`: words before the command that run it, and its worker, in another network, say. `records`: the URL of a
        database shared with other managers. `priority`: of moves that name none; on a busy machine a move that gives
        way to its guests takes minutes for what takes seconds.
        """
        self.priority = priority
        self.state_folder = state
        self.command = (*inside, *COMMAND)
        self.environment = os.environ | {
            "VMFERRY_STATE": records or str(state),
            "VMFERRY_RUNTIME": str(state),
            "LIBVIRT_DEFAULT_URI": uri,
            "COLUMNS": "120",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_worker()

    def run(self, *words: str | Path, deadline_s: float = DEADLINE_S) -> Ended:
        """Run a command to its end, and return its exit code and output."""
        ended = subprocess.run(
            self._line(words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=deadline_s,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            self._line(words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def show(self, *words: str | Path) -> int:
        """Run a command on this terminal, and return its exit code."""
        return subprocess.run(self._line(words), env=self.environment).returncode

    def _line(self, words: Sequence[str | Path]) -> list[str]:
        line = [*self.command, *map(str, words)]
        if self.priority and not MOVES.isdisjoint(line) and "--priority" not in line:
            line += ["--priority", self.priority]
        return line

    def detached(self, *words: str | Path) -> str:
        """Submit a job and leave it running. Return its id."""
        ended = self.run("migrate-storage", *words, "--detach")
        if ended.code:
            raise AssertionError(f"it was not accepted: {ended.err or ended.out}")
        return ended.out.split()[0]

    def jobs(self) -> list[dict[str, Any]]:
        return list(json.loads(self.run("jobs", "--json").out))

    def job(self, id_: str) -> dict[str, Any]:
        return dict(json.loads(self.run("job", "show", id_, "--json").out))

    def receipt(self, id_: str) -> dict[str, Any]:
        return dict(json.loads(self.run("job", "receipt", id_, "--json").out))

    # -- looking without a command: a poll must not cost what the job needs

    def state(self, id_: str) -> str:
        """Return the job's state from its record in the database."""
        return next(iter(self._ask("select state from jobs where id = ?", id_)), "")

    def steps(self, id_: str) -> list[str]:
        """Return the steps that the job has begun, done or undone, in their order."""
        return self._ask("select step from journal where job = ? order by seq", id_)

    def step(self, id_: str) -> str:
        """Return the step that the job has reached."""
        return next(reversed(self.steps(id_)), "")

    def _ask(self, question: str, id_: str) -> list[str]:
        with closing(sqlite3.connect(f"file:{self.state_folder}/vmferry.db?mode=ro", uri=True, timeout=10)) as records:
            return [str(row[0]) for row in records.execute(question, (id_,))]

    @property
    def worker_pid(self) -> int | None:
        with suppress(FileNotFoundError, ValueError):
            pid = int((self.state_folder / "worker.pid").read_text())
            with suppress(OSError):
                if str(self.state_folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def kill_worker(self) -> bool:
        """SIGKILL the worker and wait until it is gone. Return whether there was one."""
        pid = self.worker_pid
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _alive(pid), "the worker to end", 20)
        return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
