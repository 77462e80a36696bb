"""vmferry job limit: change a job's limits while it runs."""

from __future__ import annotations

import typer

from vmferry.cli.options import JobId, Json, NewMaxPause, NewRate, State
from vmferry.cli.render.sizes import rate_text, seconds_text
from vmferry.cli.session import answer, client


def job_limit(
    ctx: typer.Context,
    *,
    job: JobId,
    rate: NewRate,
    max_pause: NewMaxPause = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Change how fast a job copies, and with --max-pause how long it may pause the guest."""
    from rich.text import Text

    now = client(ctx, state, json=json).limit(job, rate.bytes_s, max_pause)
    limits = f"{rate_text(now.limit_bytes_s)}, pause at most {seconds_text(now.max_pause_s)}"
    answer(now, Text(f"job {now.id}: {limits}"), json=json)
