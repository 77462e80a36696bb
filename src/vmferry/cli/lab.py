"""vmferry lab up: a private host, or several, to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmferry.cli.options import Json, globals_of

At = Annotated[Path | None, typer.Option("--at", metavar="DIR", help="The lab's folder.", show_default=False)]
Hosts = Annotated[
    int | None,
    typer.Option(
        "--hosts", metavar="N", min=1, max=16, help="So many hosts, on a network of their own.", show_default=False
    ),
]


def lab_up(ctx: typer.Context, *, at: At = None, hosts: Hosts = None, json: Json = False) -> None:
    """Start a private host with two storages and a guest that writes; it stays until `lab down`.

    With --hosts: several hosts, each with two storages of its own, and one storage that all of them see.
    """
    globals_of(ctx).json = json
    from vmferry.cli.render.lab_page import print_lab
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    place = at or DEFAULT_PLACE
    print_lab(commands.up_several(hosts, place) if hosts else commands.up(place), json=json)
