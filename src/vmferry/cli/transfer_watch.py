"""vmferry transfer watch: follow a transfer until it has ended or needs a person."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from vmferry.cli.options import Json, State, TransferId
from vmferry.cli.render.screen import print_error, print_json, shown
from vmferry.cli.render.words import CANCELLED, DONE, LEFT, UNDONE
from vmferry.cli.session import transfer_client

if TYPE_CHECKING:
    from vmferry.model.transfers import TransferView

BETWEEN_LINES_S = 5.0


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
    """Pure."""
    return {"error": UNDONE, "cancelled": CANCELLED}.get(str(last.state), DONE)


class _Page:
    """A line for each state, and now and then one with figures; or each change as JSON."""

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
