"""vmferry job show: one job."""

from __future__ import annotations

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import answer, client


def job_show(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Show what a job does, how far it is, and each step it took."""
    from vmferry.cli.render.job_pages import job_page

    found = client(ctx, state, json=json).job(job)
    answer(found, job_page(found), json=json)
