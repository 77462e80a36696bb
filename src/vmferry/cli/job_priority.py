"""vmferry job priority: let a job go before others, or after them."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import JobId, Json, State, priority_text
from vmferry.cli.session import answer, client

Level = Annotated[str, typer.Argument(metavar="LEVEL", parser=priority_text, help="foreground, high, normal or low.")]


def job_priority(ctx: typer.Context, *, job: JobId, level: Level, json: Json = False, state: State = None) -> None:
    """Change which jobs go before this one, while it waits or runs."""
    from rich.text import Text

    now = client(ctx, state, json=json).prefer(job, level)
    answer(now, Text(f"job {now.id}: priority {now.priority}"), json=json)
