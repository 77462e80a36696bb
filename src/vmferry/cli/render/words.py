"""Words for the states of jobs, and the exit codes that they mean."""

from __future__ import annotations

from collections.abc import Mapping

from vmferry import errors
from vmferry.model import JobState, JobView, Power

DONE, UNDONE, USAGE, REFUSED, STUCK, CANCELLED = range(6)
"""Exit codes, kept for ever."""
FAILED = UNDONE
"""Of what does not concern a VM."""
WRITTEN = 6
"""Of `verify` alone: it was written since, so that nothing can be said of it."""
LEFT = 130
"""Interrupted while a job goes on: as shells have it, so that nothing takes it for an end."""

POWER: Mapping[Power, str] = {Power.RUNNING: "running", Power.PAUSED: "paused", Power.OFF: "shut off"}
STATE: Mapping[JobState, str] = {
    JobState.QUEUED: "waits for its turn",
    JobState.RUNNING: "running",
    JobState.PAUSED: "waits for you",
    JobState.UNDOING: "undoing",
    JobState.DONE: "done",
    JobState.UNDONE: "undone",
    JobState.FAILED: "failed before it began",
    JobState.STUCK: "stuck",
}
STYLE: Mapping[JobState, str] = {
    JobState.DONE: "green",
    JobState.STUCK: "bold red",
    JobState.FAILED: "red",
    JobState.UNDONE: "yellow",
    JobState.UNDOING: "yellow",
    JobState.PAUSED: "yellow",
}


def exit_code(view: JobView) -> int:
    """Return the exit code of a command that waited for this job."""
    if view.state is JobState.DONE:
        return DONE
    if view.state is JobState.STUCK:
        return STUCK
    if view.kind == errors.Cancelled.__name__:
        return CANCELLED
    if view.state is JobState.FAILED and _refusal(view.kind):
        return REFUSED
    return UNDONE


def _refusal(kind: str) -> bool:
    error = vars(errors).get(kind)
    return isinstance(error, type) and issubclass(error, errors.VmferryError) and error.exit_code == REFUSED


def ended_in_words(view: JobView) -> str:
    """Return one line on how a job ended, for all ends but a good one."""
    name, why = view.plan.vm, f": {view.sentence}" if view.sentence else ""
    match view.state:
        case JobState.STUCK:
            return f"{name} is stuck{why} (then `vmferry job retry {view.id}`)"
        case JobState.UNDONE if view.kind == errors.Cancelled.__name__:
            return f"{name}: cancelled and undone, it is where it was"
        case JobState.UNDONE:
            return f"{name}: undone, it is where it was{why}"
        case JobState.FAILED if view.kind == errors.Cancelled.__name__:
            return f"{name}: cancelled before it began, nothing was touched"
        case JobState.FAILED:
            return f"{name}: not begun, nothing was touched{why}"
        case _:
            return f"{name}: {STATE[view.state]}{why}"
