"""vmferry leftovers: what jobs left anywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import Connect, Json, State, connect_uri
from vmferry.cli.session import client

Reap = Annotated[bool, typer.Option("--reap", help="Remove them.")]


def leftovers(
    ctx: typer.Context,
    *,
    reap: Reap = False,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """List what jobs left on a host and no job in flight needs; with --reap remove it."""
    from vmferry.cli.render.screen import print_json, shown

    worker, uri = client(ctx, state, json=json), connect_uri(ctx, connect)
    found = worker.reap(uri) if reap else worker.leftovers(uri)
    if json:
        print_json(found)
        return
    for left in found:
        print(f"removed {shown(left)}" if reap else shown(left))
    stay = worker.leftovers(uri) if reap else ()
    for left in stay:
        print(f"left as it is: {shown(left)}")
    if not (found or stay):
        print("nothing was left")
