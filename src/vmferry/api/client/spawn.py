"""Starts the worker of a state folder when none answers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from vmferry.errors import WorkerUnreachable
from vmferry.process.state import ALREADY_RUNNING, StateLocation

WORKER: Sequence[str] = (sys.executable, "-P", "-m", "vmferry.server.worker")
"""-P: a folder named vmferry where the user happens to stand is not the program."""
DEADLINE_S = 60.0
SOCKET_POLL_S = 0.05
"""Between tries of the socket of a worker that was just started: short, the command waits for it."""
BESIDE_LIVING_S = 0.5
"""Between tries while another worker holds the lock and does not answer: it is coming or going."""


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_words(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self.process.returncode}"


def start(place: StateLocation, answers: Callable[[], bool]) -> None:
    """Start a worker if none answers, and return once one does.

    Raises WorkerUnreachable with the worker's last words, or at the deadline. Two commands may do this at once: the
    lock lets one worker live, and both commands reach it.
    """
    until = time.monotonic() + DEADLINE_S
    child: _Child | None = None
    while not answers():
        if time.monotonic() > until:
            raise WorkerUnreachable(state=place.state, reason=f"waited {DEADLINE_S:.0f} s", log=place.log)
        if child is None:
            child = _spawn(place)
        elif (code := child.process.poll()) is not None:
            if code not in (0, ALREADY_RUNNING) and code > 0:  # killed by a signal: simply again
                raise WorkerUnreachable(state=place.state, reason=child.last_words(), log=place.log)
            child = None
            time.sleep(BESIDE_LIVING_S)
        time.sleep(SOCKET_POLL_S)


def _spawn(place: StateLocation) -> _Child:
    """Start a worker in a session of its own, so that the terminal's end and its Ctrl-C do not reach it."""
    place.make()
    said = tempfile.TemporaryFile()  # noqa: SIM115 - read when it has failed, gone with the last who has it open
    where = ["--state", str(place.state)] if place.records is None else ["--runtime", str(place.state)]
    process = subprocess.Popen(
        [*WORKER, *where],
        env=os.environ | ({"VMFERRY_STATE": place.records} if place.records else {}),  # not for ps: a password
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )
    return _Child(process, said)
