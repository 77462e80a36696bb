"""What becomes of the files at the source, for the pages of plans and receipts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.screen import shown
from vmferry.cli.render.sizes import bytes_text
from vmferry.model import Fate, SourceFileFate

STYLES = {Fate.REMOVED: "red", Fate.RENAMED: "yellow", Fate.STAYS: "green"}
WORDS = {Fate.REMOVED: "removed", Fate.RENAMED: "kept, renamed", Fate.STAYS: "stays"}


def source_lines(sources: Sequence[SourceFileFate], title: str, *, ended: bool = False) -> Iterator[RenderableType]:
    """Yield the fate of each source file with its reason; nothing for a plan or receipt of an earlier version."""
    if not sources:
        return
    yield Text(title, style="bold")
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for source in sources:
        grid.add_row(Text(WORDS[source.fate], style=STYLES[source.fate]), Text(shown(source.path)))
        for name in _behind(source):
            grid.add_row("", Text(shown(name), style="dim"))
        grid.add_row("", Text(_about(source, ended=ended), style="dim"))
    yield grid


def _behind(source: SourceFileFate) -> list[str]:
    """Return where a symbolic link leads, and through which other links, which share its fate."""
    ways = [f"by way of the link {link}" for link in source.links[1:]]
    return [f"a link to {source.data}", *ways] if source.data else []


def _about(source: SourceFileFate, *, ended: bool) -> str:
    remarks = [shown(source.role)]
    if source.bytes and not (ended and source.goes):
        remarks.append(bytes_text(source.bytes))
    if ended and source.fate is Fate.REMOVED:
        remarks.append(f"{bytes_text(source.freed_bytes)} free again")
    return f"{', '.join(remarks)}: {shown(source.why)}"


def freed_text(sources: Sequence[SourceFileFate], *, ended: bool) -> str:
    """Return one line: how many source files are removed, renamed or stay, and how much space that frees."""
    gone = [source for source in sources if source.fate is Fate.REMOVED]
    size = sum(source.freed_bytes if ended else source.bytes for source in gone)
    stay = sum(source.fate is Fate.STAYS for source in sources)
    renamed = sum(source.fate is Fate.RENAMED for source in sources)
    remarks = [f"{len(gone)} removed{'' if ended else ' at the end'}, {bytes_text(size)} free"] if gone else []
    remarks += [f"{renamed} kept, renamed"] if renamed else []
    remarks += [f"{stay} {'stay' if stay > 1 else 'stays'}"] if stay else []
    return "; ".join(remarks)
