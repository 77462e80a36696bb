"""`vmferry storage ...`: the storages that hosts serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmferry.cli.host_options import OnHost, StorageName
from vmferry.cli.options import Json, State
from vmferry.cli.session import answer, fleet_client

Folder = Annotated[Path, typer.Option("--path", metavar="DIR", help="Its folder, or a block device, on that host.")]
Grade = Annotated[str, typer.Option("--class", metavar="CLASS", help="What kind of storage it is, as gold.")]


def storage_add(
    ctx: typer.Context,
    *,
    storage: StorageName,
    host: OnHost,
    path: Folder,
    grade: Grade = "",
    json: Json = False,
    state: State = None,
) -> None:
    """Have a host serve a storage: its agent touches files only in those that were declared so."""
    from vmferry.cli.render.fleet_pages import storages_page

    found = fleet_client(ctx, state, json=json).add_storage(storage, host, path, grade)
    answer(found, storages_page([found]), json=json)


def storage_list(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List the storages of all hosts, and which of them are the same one."""
    from vmferry.cli.render.fleet_pages import storages_page

    found = fleet_client(ctx, state, json=json).storages()
    answer(found, storages_page(found), json=json)


def storage_remove(
    ctx: typer.Context, *, storage: StorageName, host: OnHost, json: Json = False, state: State = None
) -> None:
    """Have a host serve a storage no longer; what lies there stays."""
    from rich.text import Text

    fleet_client(ctx, state, json=json).remove_storage(storage, host)
    answer({"removed": storage, "host": host}, Text(f"storage {storage} of {host} was removed"), json=json)
