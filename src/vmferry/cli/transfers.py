"""vmferry transfer list: the transfers of a state folder."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, transfer_client

All = Annotated[bool, typer.Option("--all", help="Those acknowledged or cancelled too.")]


def transfer_list(ctx: typer.Context, *, all_: All = False, json: Json = False, state: State = None) -> None:
    """List transfers, newest first."""
    from vmferry.cli.render.transfer_pages import transfers_page
    from vmferry.model.transfers import OVER

    found = [each for each in transfer_client(ctx, state, json=json).transfers() if all_ or each.state not in OVER]
    answer(found, transfers_page(found), json=json)
