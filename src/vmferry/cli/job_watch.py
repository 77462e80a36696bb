"""vmferry job watch: watch a job to its end."""

from __future__ import annotations

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import client


def job_watch(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Watch a job to its end; ends as migrate-storage would have."""
    from vmferry.cli.watching import viewer, watch

    worker = client(ctx, state, json=json)
    raise typer.Exit(watch(worker, worker.job(job), viewer(json=json)))
