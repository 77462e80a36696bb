"""Builds API clients from a command's options. Heavy imports wait until they are needed."""

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
    """Return the client of the chosen state's worker; the first request starts the worker."""
    from vmferry.api.client.client import Client

    globals_of(ctx).json = json
    return Client(state_place(ctx, state), says=print_error)


def transfer_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> TransferClient:
    """Return the client for transfers; the first request starts the chosen state's worker."""
    from vmferry.api.client.transfers import TransferClient

    globals_of(ctx).json = json
    return TransferClient(state_place(ctx, state), says=print_error)


def fleet_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> FleetClient:
    """Return the client for hosts and storages; the first request starts the chosen state's worker."""
    from vmferry.api.client.fleet import FleetClient

    globals_of(ctx).json = json
    return FleetClient(state_place(ctx, state), says=print_error)


def cpu_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> CpuClient:
    """Return the client for CPU checks and limits; the first request starts the chosen state's worker."""
    from vmferry.api.client.cpu import CpuClient

    globals_of(ctx).json = json
    return CpuClient(state_place(ctx, state), says=print_error)


def notice_client(ctx: typer.Context, state: str | None, *, json: bool = False) -> NoticeClient:
    """Return the client for notices; the first request starts the chosen state's worker."""
    from vmferry.api.client.notices import NoticeClient

    globals_of(ctx).json = json
    return NoticeClient(state_place(ctx, state), says=print_error)


def answer(record: object, page: RenderableType, *, json: bool) -> None:
    """Print a record as JSON for programs, or its page for people."""
    from vmferry.api.codec import to_json

    if json:
        print_json(to_json(record))
    else:
        show(page)
