"""vmferry storage remove: have a host serve a storage no longer."""

from __future__ import annotations

import typer

from vmferry.cli.host_options import OnHost, StorageName
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client


def storage_remove(
    ctx: typer.Context, *, storage: StorageName, host: OnHost, json: Json = False, state: State = None
) -> None:
    """Have a host serve a storage no longer; what lies there stays."""
    from rich.text import Text

    fleet_client(ctx, state, json=json).remove_storage(storage, host)
    answer({"removed": storage, "host": host}, Text(f"storage {storage} of {host} was removed"), json=json)
