"""The terminal, or what stands in its place. Nothing that comes from outside is taken as markup."""

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
    """Does a person look at what is printed, on something that can redraw it?"""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")


def answered() -> bool:
    """Does a person sit there who can be asked?"""
    return sys.stdin.isatty() and sys.stdout.isatty()


def screen(*, errors: bool = False) -> Console:
    """Standard output, or standard error."""
    from rich.console import Console

    stream = sys.stderr if errors else sys.stdout
    folded = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        stderr=errors, markup=False, emoji=False, highlight=False, soft_wrap=False, width=None if folded else WIDE
    )


def show(page: RenderableType, *, errors: bool = False) -> None:
    """Print a page; where nobody looks at a screen, without the blanks that fill its columns."""
    console = screen(errors=errors)
    if console.is_terminal:
        console.print(page)
        return
    with console.capture() as capture:
        console.print(page)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=console.file)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table as the tools of this field print it; cells are rich Text or plain words of our own."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold", justify="right" if name in right else "left")
    return made


def shown(text: object) -> str:
    """A name or path from outside, with nothing in it that could steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def print_json(record: object) -> None:
    """One record, one line, at once."""
    print(json.dumps(record, ensure_ascii=False), flush=True)


def print_error(sentence: str) -> None:
    print(f"vmferry: {shown(sentence)}", file=sys.stderr)
