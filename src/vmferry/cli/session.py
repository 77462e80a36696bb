"""From a command's options to the client it speaks through. Heavy imports wait until they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vmferry.cli.options import globals_of, state_place
from vmferry.cli.render.screen import print_error, print_json, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmferry.api.client.client import Client
    from vmferry.api.client.cpu import CpuClient
    from vmferry.api.client.fleet import FleetClient
    from vmferry.api.client.notices import NoticeClient
    from vmferry.api.client.transfers import TransferClient


def client(ctx: typer.Context, state: str | None, *, json: bool = False) -> Client:
    """The worker of the state asked for; it is started with the first question."""
    from vmferry.api.client.client import Client

    globals_of(ctx).json = json
    return Client(state_place(ctx, state), says=print_error)


def transfer_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> TransferClient:
    """The same, for transfers."""
    from vmferry.api.client.transfers import TransferClient

    globals_of(ctx).json = json
    return TransferClient(state_place(ctx, state), says=print_error)


def fleet_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> FleetClient:
    """The same, for hosts and storages."""
    from vmferry.api.client.fleet import FleetClient

    globals_of(ctx).json = json
    return FleetClient(state_place(ctx, state), says=print_error)


def cpu_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> CpuClient:
    """The same, for processors."""
    from vmferry.api.client.cpu import CpuClient

    globals_of(ctx).json = json
    return CpuClient(state_place(ctx, state), says=print_error)


def notice_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> NoticeClient:
    """The same, for notices."""
    from vmferry.api.client.notices import NoticeClient

    globals_of(ctx).json = json
    return NoticeClient(state_place(ctx, state), says=print_error)


def answer(record: object, page: RenderableType, *, json: bool) -> None:
    """Print a record for programs, or its page for people."""
    from vmferry.api.codec import to_json

    if json:
        print_json(to_json(record))
    else:
        show(page)
