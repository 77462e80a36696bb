"""vmferry host list: all hosts, each asked how it is."""

from __future__ import annotations

import typer

from vmferry.cli.host_options import hosts_page
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client


def host_list(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List all hosts that were added, and whether their agents answer."""
    found = fleet_client(ctx, state, json=json).hosts()
    answer(found, hosts_page(found), json=json)
