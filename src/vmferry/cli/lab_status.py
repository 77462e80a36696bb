"""vmferry lab status: what the private host holds."""

from __future__ import annotations

import typer

from vmferry.cli.lab import At
from vmferry.cli.options import Json, globals_of


def lab_status(ctx: typer.Context, *, at: At = None, json: Json = False) -> None:
    """Show the lab's hosts, storages and VMs, and how to reach them."""
    globals_of(ctx).json = json
    from vmferry.cli.render.lab_page import print_lab
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    print_lab(commands.status(at or DEFAULT_PLACE), json=json)
