"""vmferry job retry: let a stuck job go on."""

from __future__ import annotations

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import answer, client


def job_retry(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Let a stuck job try its step again, once what stopped it is mended; start an undone one anew."""
    from rich.text import Text

    asked = client(ctx, state, json=json).retry(job)
    answer(asked, Text(f"job {asked.id} goes on: `vmferry job watch {asked.id}` shows it"), json=json)
