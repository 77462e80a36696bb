"""A migration by vmferry's own command, and where its time and its pause went."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from vmferry.lab import LabGuest
from vmferry.lab.vmferry_command import VmferryCommand

from .table import Sample

PAUSED_STEPS = ("CopyLast", "FoldLast", "CopyFiles", "Point", "Restore", "Resume")
"""The steps of a quick migration for which the guest stands; Save stands at its very end only."""


MAX_PAUSE = "30s"
"""More than any: the bench measures the pause, it does not bound it."""


class NotMoved(Exception):
    """The command did not end well: there is nothing to measure."""


def migrate(ferry: VmferryCommand, guest: LabGuest, folder: Path, via: str, priority: str = "foreground") -> Sample:
    """Move a guest's disks to a folder.

    In the foreground unless told otherwise: the other tools do not give way to guests either.
    """
    words = ("migrate-storage", guest.name, "--path", folder, "--via", via, "--priority", priority)
    return moved(ferry, words, paused=PAUSED_STEPS if via == "quick" else ())


def moved(ferry: VmferryCommand, words: Sequence[str | Path], paused: Sequence[str] = ()) -> Sample:
    """Run a migration. Its worker runs already, so that the command's time is the command's own and the job's.

    `paused`: the steps for which the guest stands, where each part of its pause is wanted.
    """
    began = time.monotonic()
    try:
        ended = ferry.run(*words, "--max-pause", MAX_PAUSE)
    except subprocess.TimeoutExpired as late:
        raise NotMoved(f"the job does not end: {ferry.jobs()[0]}") from late
    command_s = time.monotonic() - began
    if ended.code:
        raise NotMoved(f"vmferry ended with {ended.code}: {ended.err or ended.out}")
    id_ = ferry.jobs()[0]["id"]
    job, receipt = ferry.job(id_), ferry.receipt(id_)
    job_s = _seconds(job["created"], job["ended"])
    steps = {line["step"]: line for line in job["journal"]}
    return {
        "whole": job_s,
        "command": command_s,
        "receipt pause": receipt["pause_s"],
        "forecast": receipt["pause_forecast_s"],
        **{f"step {name}": _took(line) for name, line in steps.items()},
        **{f"phase {phase['name']}": phase["seconds"] for phase in receipt["phases"]},
        "between": job_s - sum(_took(line) for line in steps.values()),
        **(_quick_pause(steps, paused, receipt["pause_s"]) if paused else {}),
    }


def _quick_pause(steps: Mapping[str, Mapping[str, Any]], paused: Sequence[str], pause_s: float) -> dict[str, float]:
    """The parts of the pause, which add up to what the receipt tells."""
    standing = [steps[name] for name in paused]
    parts = {f"pause {line['step']}": _took(line) for line in standing}
    walked = [steps["Save"], *standing]
    parts["pause between"] = sum(_seconds(a["ended"], b["begun"]) for a, b in pairwise(walked))
    parts["pause Save"] = pause_s - sum(parts.values())
    return parts


def _took(line: Mapping[str, Any]) -> float:
    return _seconds(line["begun"], line["ended"])


def _seconds(begun: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()
