"""Pages about notices, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.screen import shown, table
from vmferry.model import NOBODY, NoticeState, NoticeView, Notifying

STYLE = {NoticeState.WAITING: "yellow", NoticeState.DELIVERED: "green", NoticeState.GIVEN_UP: "red"}


def notifying_page(found: Notifying) -> RenderableType:
    """Return the page of the receivers of all notices, with the last notices."""
    to = found.receivers
    if to == NOBODY:
        who: RenderableType = Text("nobody is told: `vmferry notify set` names a command or a URL")
    else:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        for name, text in (("command", to.command), ("url", to.url), ("signed with", to.secret or "")):
            if text:
                grid.add_row(name, Text(shown(text)))
        who = grid
    return Group(who, Text(), notices_page(found.notices)) if found.notices else who


def notices_page(notices: Sequence[NoticeView]) -> RenderableType:
    """Return a table of notices, in the order given."""
    made = table("when", "event", "of", "to", "came to")
    for notice in notices:
        made.add_row(
            notice.created[:19],
            notice.event,
            Text(shown(notice.subject)),
            Text(shown(notice.to)),
            Text(shown(came_to(notice)), style=STYLE[notice.state]),
        )
    return made


def came_to(notice: NoticeView) -> str:
    """Return a notice's state, and why it is no better: "waiting, tried 3 times: it answered 500"."""
    times = "once" if notice.tries == 1 else f"{notice.tries} times"
    tried = f", tried {times}" if notice.tries and notice.state is not NoticeState.DELIVERED else ""
    why = f": {notice.sentence}" if notice.sentence else ""
    return f"{notice.state}{tried}{why}"


def told_lines(notices: Sequence[NoticeView]) -> list[str]:
    """Return one line for each notice of a job or transfer."""
    return [f"{notice.event} to {notice.to}: {came_to(notice)}" for notice in notices]
