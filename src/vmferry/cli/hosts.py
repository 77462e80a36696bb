"""`vmferry host ...`: hosts that run the agent."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.host_options import HostName
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
    from vmferry.cli.render.fleet_pages import hosts_page

    found = fleet_client(ctx, state, json=json).add_host(host, address, token, also or [])
    answer(found, hosts_page([found]), json=json)


def host_list(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List all hosts that were added, and whether their agents answer."""
    from vmferry.cli.render.fleet_pages import hosts_page

    found = fleet_client(ctx, state, json=json).hosts()
    answer(found, hosts_page(found), json=json)


def host_show(ctx: typer.Context, *, host: HostName, json: Json = False, state: State = None) -> None:
    """Show one host, and whether its agent answers."""
    from vmferry.cli.render.fleet_pages import hosts_page

    found = fleet_client(ctx, state, json=json).host(host)
    answer(found, hosts_page([found]), json=json)


def host_revoke(ctx: typer.Context, *, host: HostName, json: Json = False, state: State = None) -> None:
    """Revoke a host's certificates: no manager and no other host talks to it any more."""
    from vmferry.cli.render.fleet_pages import hosts_page

    found = fleet_client(ctx, state, json=json).revoke_host(host)
    answer(found, hosts_page([found]), json=json)


def host_remove(ctx: typer.Context, *, host: HostName, json: Json = False, state: State = None) -> None:
    """Forget a host and its storages, and revoke its certificates; its VMs and disks stay as they are."""
    from rich.text import Text

    fleet_client(ctx, state, json=json).remove_host(host)
    answer({"removed": host}, Text(f"host {host} was removed"), json=json)
