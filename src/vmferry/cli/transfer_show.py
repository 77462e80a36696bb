"""vmferry transfer show: one transfer."""

from __future__ import annotations

import typer

from vmferry.cli.options import Json, State, TransferId
from vmferry.cli.session import answer, transfer_client


def transfer_show(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Show what a transfer does, how far it is, and what went wrong."""
    from vmferry.cli.render.transfer_pages import transfer_page

    found = transfer_client(ctx, state, json=json).transfer(transfer)
    answer(found, transfer_page(found), json=json)
