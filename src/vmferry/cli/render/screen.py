"""The terminal, or the file or pipe in its place. Text from outside is never read as markup."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

WIDE = 4096
"""Where nobody looks at a screen, lines are not folded: they are searched and cut by other programs."""


def seen() -> bool:
    """Is standard output a terminal that can redraw?"""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def answered() -> bool:
    """Can a person be asked: are standard input and output a terminal?"""
    return sys.stdin.isatty() and sys.stdout.isatty()


def screen(*, errors: bool = False) -> Console:
    """Return a console on standard output, or standard error."""
    from rich.console import Console

    stream = sys.stderr if errors else sys.stdout
    folded = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        stderr=errors, markup=False, emoji=False, highlight=False, soft_wrap=False, width=None if folded else WIDE
    )


def show(page: RenderableType, *, errors: bool = False) -> None:
    """Print a page; to a file or pipe, without trailing blanks."""
    console = screen(errors=errors)
    if console.is_terminal:
        console.print(page)
        return
    with console.capture() as capture:
        console.print(page)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=console.file)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table in plain style; cells are rich Text, or plain words of vmferry's own."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold", justify="right" if name in right else "left")
    return made


def fact_grid(*facts: tuple[str, str]) -> Table:
    """Return names and values side by side, long values folded."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(value))
    return grid


def shown(text: object) -> str:
    """Return a name or path with its unprintable characters replaced, so that it cannot control the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def print_json(record: object) -> None:
    """Print a record as one line of JSON, and flush it."""
    print(json.dumps(record, ensure_ascii=False), flush=True)


def print_error(sentence: str) -> None:
    print(f"vmferry: {shown(sentence)}", file=sys.stderr)
