"""vmferry host revoke: trust a host no longer."""

from __future__ import annotations

import typer

from vmferry.cli.host_options import HostName, hosts_page
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client


def host_revoke(ctx: typer.Context, *, host: HostName, json: Json = False, state: State = None) -> None:
    """Revoke a host's certificates: no manager and no other host talks to it any more."""
    found = fleet_client(ctx, state, json=json).revoke_host(host)
    answer(found, hosts_page([found]), json=json)
