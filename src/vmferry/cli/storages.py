"""vmferry storage list: the storages of all hosts."""

from __future__ import annotations

import typer

from vmferry.cli.host_options import storages_page
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client


def storage_list(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List the storages of all hosts, and which of them are the same one."""
    found = fleet_client(ctx, state, json=json).storages()
    answer(found, storages_page(found), json=json)
