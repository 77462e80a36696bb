"""`vmferry transfer ...`: copies that the worker does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import Json, NewRate, State, TransferId, priority_text
from vmferry.cli.render.screen import print_error, print_json, shown
from vmferry.cli.render.words import CANCELLED, DONE, LEFT, UNDONE
from vmferry.cli.session import answer, transfer_client

All = Annotated[bool, typer.Option("--all", help="Those acknowledged or cancelled too.")]

if TYPE_CHECKING:
    from vmferry.model.transfers import TransferView

if TYPE_CHECKING:
    from vmferry.model.transfers import TransferView

BETWEEN_LINES_S = 5.0
Level = Annotated[
    str, typer.Argument(metavar="PRIORITY", parser=priority_text, help="foreground, high, normal or low.")
]


def transfer_list(ctx: typer.Context, *, all_: All = False, json: Json = False, state: State = None) -> None:
    """List transfers, newest first."""
    from vmferry.cli.render.transfer_pages import transfers_page
    from vmferry.model.transfers import OVER

    found = [each for each in transfer_client(ctx, state, json=json).transfers() if all_ or each.state not in OVER]
    answer(found, transfers_page(found), json=json)


def transfer_show(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Show what a transfer does, how far it is, and what went wrong."""
    from vmferry.cli.render.transfer_pages import transfer_page

    found = transfer_client(ctx, state, json=json).transfer(transfer)
    answer(found, transfer_page(found), json=json)


def transfer_watch(ctx: typer.Context, *, transfer: TransferId, json: Json = False, state: State = None) -> None:
    """Follow a transfer until it is transferred, cancelled or in error. Ctrl-C leaves it running.

    Ends with 0, 5 or 1.
    """
    worker = transfer_client(ctx, state, json=json)
    page, last = _Page(json=json), worker.transfer(transfer)
    try:
        for seen in worker.watch_transfer(last.id):
            page.show(seen)
            last = seen
    except KeyboardInterrupt:
        print_error(f"transfer {last.id} goes on in the background")
        raise typer.Exit(LEFT) from None
    raise typer.Exit(exit_code(last))


def exit_code(last: TransferView) -> int:
    """Return the command's exit code for a transfer's last state. Pure."""
    return {"error": UNDONE, "cancelled": CANCELLED}.get(str(last.state), DONE)


class _Page:
    """Prints a line for each state of a transfer, and now and then one with figures; or each change as JSON."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._told = ""
        self._at = time.monotonic()

    def show(self, seen: TransferView) -> None:
        from vmferry.api.codec import to_json
        from vmferry.cli.render.transfer_pages import figures_text, next_text, state_text

        if self._json:
            print_json(to_json(seen))
            return
        happens = ": ".join(filter(None, (state_text(seen), seen.sentence)))
        if happens != self._told or time.monotonic() - self._at >= BETWEEN_LINES_S:
            figures = figures_text(seen) if happens == self._told else ""
            self._told, self._at = happens, time.monotonic()
            print(shown("  ".join(filter(None, (happens, figures, seen.held, next_text(seen))))), flush=True)


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
