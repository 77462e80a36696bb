"""Delivers a notice by running a command: the event is on its standard input and in its environment."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Event
from typing import IO

from vmferry.errors import NotTold
from vmferry.errors.system import in_words
from vmferry.manager.store.notices import Notice

DEADLINE_S = 60
KILLED_AFTER_S = 5
"""Between SIGTERM at the deadline and SIGKILL."""
_EXIT_POLL_S = 0.25
"""Between two looks whether the command has ended, or this process is about to."""
_LAST_WORDS = 400
_LONGEST_WORD = 8192
"""Linux takes 128 KiB in one variable; the whole sentence stands in the JSON."""
_TIMED_OUT = (124, 137, -signal.SIGKILL)


def run(notice: Notice, whose: Mapping[str, str], closing: Event, deadline_s: float = DEADLINE_S) -> None:
    """Run a notice's command once, no longer than `deadline_s`. Raises NotTold unless it ends with 0.

    `whose`: the variables that lead every vmferry command to this manager, so that the receiver can ask for more.

    `timeout` of the coreutils stands between: it ends the command and all of its process group also when this process
    is killed meanwhile.
    """
    words = ["timeout", f"--kill-after={KILLED_AFTER_S}", str(deadline_s), *shlex.split(notice.receiver)]
    with tempfile.TemporaryFile() as body, tempfile.TemporaryFile() as said:  # files: a pipe that nobody reads blocks
        body.write(notice.body.encode())
        body.seek(0)
        try:
            process = subprocess.Popen(
                words,
                stdin=body,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=os.environ | _environment(notice) | dict(whose),
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise NotTold(to=notice.to, reason=in_words(error)) from error
        code = _ended(process, closing, deadline_s)
        if code != 0:
            raise NotTold(to=notice.to, reason=_reason(code, said, deadline_s))


def program(command: str) -> str | None:
    """Say what is wrong with a command, None if nothing is."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"it cannot be split into words: {error}"
    if not words:
        return "it is empty"
    if "\0" in command:
        return "it contains a null character"
    name = words[0]
    if "/" in name and not name.startswith("/"):
        return f"{name} is relative to where you stand, and the worker stands elsewhere: give its whole path"
    if shutil.which(name) is None:
        return f"{name} is no program that the worker finds"
    return None


def _environment(notice: Notice) -> dict[str, str]:
    body = json.loads(notice.body)
    named = {
        "VMFERRY_EVENT": notice.event,
        "VMFERRY_EVENT_ID": notice.event_id,
        "VMFERRY_EVENT_TIME": body["time"],
        "VMFERRY_JOB": body.get("job", ""),
        "VMFERRY_VM": body.get("vm", ""),
        "VMFERRY_TRANSFER": body.get("transfer", ""),
        "VMFERRY_SENTENCE": body.get("sentence", ""),
    }
    return {name: word.replace("\0", "")[:_LONGEST_WORD] for name, word in named.items()}


def _ended(process: subprocess.Popen[bytes], closing: Event, deadline_s: float) -> int:
    """Wait for the process, and return its exit code.

    When the worker leaves, the process is killed at once: the next worker runs the command again.
    """
    until = time.monotonic() + deadline_s + 2 * KILLED_AFTER_S
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_EXIT_POLL_S)
        if closing.is_set() or time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


def _reason(code: int, said: IO[bytes], deadline_s: float) -> str:
    if code in _TIMED_OUT:
        return f"it did not end within {deadline_s:g} s"
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _LAST_WORDS))
    words = said.read().decode(errors="replace").strip().splitlines()
    ended = f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"
    return f"{ended}: {words[-1]}" if words else ended
