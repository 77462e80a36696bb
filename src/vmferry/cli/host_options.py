"""Arguments and pages that the commands about hosts and storages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.model.fleet import HostState, HostView, StorageView

if TYPE_CHECKING:
    from rich.console import RenderableType

HostName = Annotated[str, typer.Argument(metavar="HOST", help="The host's name.")]
StorageName = Annotated[str, typer.Argument(metavar="NAME", help="The storage's name on that host.")]
OnHost = Annotated[str, typer.Option("--host", metavar="HOST", help="The host that has it.")]


def hosts_page(hosts: Sequence[HostView]) -> RenderableType:
    from rich.text import Text

    from vmferry.cli.render.screen import shown, table

    if not hosts:
        return Text("no hosts: add one with vmferry host add")
    page = table("NAME", "STATE", "ADDRESS", "LIBVIRT", "VERSION", "CERTIFICATE UNTIL")
    for host in hosts:
        state = host.state if host.state is HostState.ANSWERS else f"{host.state}: {host.sentence}"
        until = host.certificate_expires[:10]
        cells = (host.name, state, host.address, host.connect, host.version, until)
        page.add_row(*(Text(shown(cell)) for cell in cells))
    return page


def storages_page(storages: Sequence[StorageView]) -> RenderableType:
    from rich.text import Text

    from vmferry.cli.render.screen import shown, table

    if not storages:
        return Text("no storages: declare one with vmferry storage add")
    page = table("HOST", "NAME", "CLASS", "PATH", "SHARED WITH")
    for storage in storages:
        shared = ", ".join(storage.shared_with)
        cells = (storage.host, storage.name, storage.grade, storage.path, shared)
        page.add_row(*(Text(shown(cell)) for cell in cells))
    return page
