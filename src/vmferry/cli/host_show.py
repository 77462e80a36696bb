"""vmferry host show: one host."""

from __future__ import annotations

import typer

from vmferry.cli.host_options import HostName, hosts_page
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client


def host_show(ctx: typer.Context, *, host: HostName, json: Json = False, state: State = None) -> None:
    """Show one host, and whether its agent answers."""
    found = fleet_client(ctx, state, json=json).host(host)
    answer(found, hosts_page([found]), json=json)
