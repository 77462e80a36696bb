"""vmferry job receipt: what a finished job left."""

from __future__ import annotations

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import answer, client


def job_receipt(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Print the receipt of a finished job."""
    from vmferry.cli.render.receipt_page import receipt_page

    found = client(ctx, state, json=json).receipt(job)
    answer(found, receipt_page(found), json=json)
