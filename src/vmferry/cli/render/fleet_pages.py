"""Pages about hosts and storages, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from vmferry.cli.render.screen import shown, table
from vmferry.model.fleet import HostState, HostView, StorageView


def hosts_page(hosts: Sequence[HostView]) -> RenderableType:
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
    if not storages:
        return Text("no storages: declare one with vmferry storage add")
    page = table("HOST", "NAME", "CLASS", "PATH", "SHARED WITH")
    for storage in storages:
        shared = ", ".join(storage.shared_with)
        cells = (storage.host, storage.name, storage.grade, storage.path, shared)
        page.add_row(*(Text(shown(cell)) for cell in cells))
    return page
