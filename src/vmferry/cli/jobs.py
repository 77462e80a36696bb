"""vmferry jobs: all jobs of a state folder."""

from __future__ import annotations

import typer

from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, client


def jobs(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List jobs, newest first."""
    from vmferry.cli.render.job_pages import jobs_page

    found = client(ctx, state, json=json).jobs()
    answer(found, jobs_page(found), json=json)
