"""`vmferry notify ...`: the receivers of notices about all jobs and transfers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from vmferry.cli.options import Command, Json, Secret, State, Webhook, receivers
from vmferry.cli.render.words import DONE, FAILED
from vmferry.cli.session import answer, notice_client
from vmferry.model import NOBODY, NoticeState

if TYPE_CHECKING:
    from vmferry.api.client.notices import NoticeClient
    from vmferry.model import NoticeView, Notifying

EVENT_POLL_S = 0.1
"""Between two looks at a test notice that is on its way: short enough that a person takes it for at once."""
PATIENCE_S = 120.0
"""Longer than a try of any kind may take."""


def notify_show(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """Show who is told of everything, and how the last notices went."""
    _answer(notice_client(ctx, state, json=json).notifying(), json=json)


def notify_set(
    ctx: typer.Context,
    *,
    command: Command = "",
    url: Webhook = "",
    secret: Secret = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Tell these, and no others, of everything from now on; a job or copy may name more with --notify-..."""
    wanted = receivers(command, url, secret)
    if wanted == NOBODY:
        raise typer.BadParameter("name --command, --url or both; `vmferry notify clear` tells nobody any more")
    _answer(notice_client(ctx, state, json=json).set_receivers(wanted), json=json)


def notify_clear(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """Tell nobody any more, but those that a job or copy has named."""
    _answer(notice_client(ctx, state, json=json).set_receivers(NOBODY), json=json)


def notify_test(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """Send a test, once, and wait for how it goes: 1 if one was not told."""
    from vmferry.cli.render.notice_pages import notices_page

    found = _settled(notice_client(ctx, state, json=json))
    answer(found, notices_page(found), json=json)
    raise typer.Exit(DONE if all(notice.state is NoticeState.DELIVERED for notice in found) else FAILED)


def _settled(worker: NoticeClient) -> list[NoticeView]:
    found = worker.test_receivers()
    until = time.monotonic() + PATIENCE_S
    while any(notice.state is NoticeState.WAITING for notice in found) and time.monotonic() < until:
        time.sleep(EVENT_POLL_S)
        found = worker.event(found[0].event_id)
    return found


def _answer(found: Notifying, *, json: bool) -> None:
    from vmferry.cli.render.notice_pages import notifying_page

    answer(found, notifying_page(found), json=json)
