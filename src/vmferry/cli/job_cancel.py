"""vmferry job cancel: have a job undone."""

from __future__ import annotations

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import answer, client


def job_cancel(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Ask for a job to be cancelled and undone; returns at once."""
    from rich.text import Text

    asked = client(ctx, state, json=json).cancel(job)
    page = Text(f"job {asked.id} is asked to undo itself: `vmferry job watch {asked.id}` shows it")
    answer(asked, page, json=json)
