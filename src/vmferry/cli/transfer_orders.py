"""vmferry transfer suspend, resume, cancel, acknowledge, limit, priority: what one can ask of a transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import Json, NewRate, State, TransferId, priority_text
from vmferry.cli.session import answer, transfer_client

if TYPE_CHECKING:
    from vmferry.model.transfers import TransferView

Level = Annotated[
    str, typer.Argument(metavar="PRIORITY", parser=priority_text, help="foreground, high, normal or low.")
]


def transfer_suspend(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Stop a transfer until it is resumed; nothing stays open."""
    _answer(transfer_client(ctx, state, json=json).order(transfer, "suspend"), json=json)


def transfer_resume(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Go on with a transfer that is suspended or met an error, at once."""
    _answer(transfer_client(ctx, state, json=json).order(transfer, "resume"), json=json)


def transfer_cancel(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Give a transfer up, and wait until nothing of it is left."""
    worker = transfer_client(ctx, state, json=json)
    asked = worker.order(transfer, "cancel")
    _answer(worker.settled(asked), json=json)


def transfer_acknowledge(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Give what was transferred its name. Nothing is overwritten."""
    _answer(transfer_client(ctx, state, json=json).order(transfer, "acknowledge"), json=json)


def transfer_limit(
    ctx: typer.Context, *, transfer: TransferId, rate: NewRate, json: Json = False, state: State = None
) -> None:
    """Change the limit of a transfer, at once."""
    _answer(transfer_client(ctx, state, json=json).limit_transfer(transfer, rate.bytes_s), json=json)


def transfer_priority(
    ctx: typer.Context, *, transfer: TransferId, level: Level, json: Json = False, state: State = None
) -> None:
    """Change a transfer's place before others, at once."""
    _answer(transfer_client(ctx, state, json=json).prefer_transfer(transfer, level), json=json)


def _answer(found: TransferView, *, json: bool) -> None:
    from vmferry.cli.render.transfer_pages import transfer_page

    answer(found, transfer_page(found), json=json)
