"""vmferry vms: the VMs of a host."""

from __future__ import annotations

import typer

from vmferry.cli.options import Connect, Json, State, connect_uri
from vmferry.cli.session import answer, client


def vms(ctx: typer.Context, *, json: Json = False, connect: Connect = None, state: State = None) -> None:
    """List the VMs of a host, with the storage they lie on."""
    from vmferry.cli.render.vm_pages import vms_page

    found = client(ctx, state, json=json).vms(connect_uri(ctx, connect))
    answer(found, vms_page(found), json=json)
