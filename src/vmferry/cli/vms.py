"""`vmferry vms` and `vmferry vm show`."""

from __future__ import annotations

import typer

from vmferry.cli.options import Connect, Json, State, VmName, connect_uri
from vmferry.cli.session import answer, client


def vms(ctx: typer.Context, *, json: Json = False, connect: Connect = None, state: State = None) -> None:
    """List the VMs of a host, with the storage they lie on."""
    from vmferry.cli.render.vm_pages import vms_page

    found = client(ctx, state, json=json).vms(connect_uri(ctx, connect))
    answer(found, vms_page(found), json=json)


def vm_show(
    ctx: typer.Context,
    *,
    vm: VmName,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Show a VM's disks with their chains, its snapshots, NVRAM and TPM."""
    from vmferry.cli.render.vm_pages import vm_page

    found = client(ctx, state, json=json).vm(vm, connect_uri(ctx, connect))
    answer(found, vm_page(found), json=json)
