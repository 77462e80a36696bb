"""vmferry host remove: forget a host."""

from __future__ import annotations

import typer

from vmferry.cli.host_options import HostName
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client


def host_remove(ctx: typer.Context, *, host: HostName, json: Json = False, state: State = None) -> None:
    """Forget a host and its storages, and revoke its certificates; its VMs and disks stay as they are."""
    from rich.text import Text

    fleet_client(ctx, state, json=json).remove_host(host)
    answer({"removed": host}, Text(f"host {host} was removed"), json=json)
