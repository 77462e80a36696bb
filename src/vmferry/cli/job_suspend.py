"""vmferry job suspend: have a job stand still, and go on later."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import answer, client
from vmferry.model import JobState, JobView

if TYPE_CHECKING:
    from vmferry.api.client.client import Client

PATIENCE_S = 10.0
LOOK_S = 0.1


def job_suspend(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Have a job stand still while it copies; the VM runs on. Waits a little until it does."""
    from rich.text import Text

    worker = client(ctx, state, json=json)
    asked = _stood(worker, worker.suspend(job))
    then = f"`vmferry job resume {asked.id}` lets it go on"
    says = (
        f"stands still: {then}"
        if asked.state is JobState.PAUSED
        else f"is {asked.state}: it stands as soon as it copies"
    )
    answer(asked, Text(f"job {asked.id} {says}"), json=json)


def job_resume(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Let a suspended job go on."""
    from rich.text import Text

    asked = client(ctx, state, json=json).resume(job)
    answer(asked, Text(f"job {asked.id} goes on: `vmferry job watch {asked.id}` shows it"), json=json)


def _stood(worker: Client, asked: JobView) -> JobView:
    until = time.monotonic() + PATIENCE_S
    while asked.state is JobState.RUNNING and time.monotonic() < until:
        time.sleep(LOOK_S)
        asked = worker.job(asked.id)
    return asked
