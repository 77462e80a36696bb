"""vmferry host add: let a host's agent in."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.host_options import HostName, hosts_page
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client

Address = Annotated[
    str, typer.Option("--address", metavar="HOST:PORT", help="Where its agent listens; without a port, 8443.")
]
Token = Annotated[str, typer.Option("--token", metavar="TOKEN", help="What `vmferry agent --new-token` printed there.")]
Also = Annotated[
    list[str] | None,
    typer.Option("--also", metavar="HOST", help="Another name or address of it, for other hosts; may be repeated."),
]


def host_add(
    ctx: typer.Context,
    *,
    host: HostName,
    address: Address,
    token: Token,
    also: Also = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Let a host's agent in, with a one-time token: it gets a certificate, and jobs can name the host."""
    found = fleet_client(ctx, state, json=json).add_host(host, address, token, also or [])
    answer(found, hosts_page([found]), json=json)
