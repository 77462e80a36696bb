"""Shows a copy: a bar on a terminal, a line every few seconds, or JSON lines; then what was done."""

from __future__ import annotations

import time
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.screen import print_json, screen, seen, shown
from vmferry.cli.render.sizes import bytes_text, rate_text, seconds_text
from vmferry.cli.render.viewers import BETWEEN_LINES_S

if TYPE_CHECKING:
    from vmferry.transfer import Throttle
    from vmferry.transfer.verification.receipts import CopyReceipt

JSON_BETWEEN_S = 1.0


class CopyView:
    """The display of a disk copy, with one throttle for all its phases."""

    def __init__(self, throttle: Throttle, *, json: bool) -> None:
        self.throttle = throttle
        self._json = json
        self._live = Live(console=screen(), transient=True, refresh_per_second=8) if seen() and not json else None
        self._lock = Lock()
        self._told = ("", time.monotonic())

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def phase(self, name: str) -> PhaseWatch:
        return PhaseWatch(self, name)

    def tell(self, phase: str, done: int, total: int, rate_bytes_s: float) -> None:
        """Show a phase's progress; called from several threads."""
        with self._lock:
            if self._live:
                self._live.update(bar(phase, done, total, rate_bytes_s))
            elif self._due(phase):
                self._line(phase, done, total, rate_bytes_s)

    def _due(self, phase: str) -> bool:
        """Is a line due? At the beginning of each phase, and then every few seconds."""
        before, then = self._told
        between = JSON_BETWEEN_S if self._json else BETWEEN_LINES_S
        if phase == before and time.monotonic() - then < between:
            return False
        self._told = (phase, time.monotonic())
        return True

    def _line(self, phase: str, done: int, total: int, rate_bytes_s: float) -> None:
        if self._json:
            event = {"event": "progress", "phase": phase, "done_bytes": done, "total_bytes": total}
            print_json({**event, "rate_bytes_s": round(rate_bytes_s)})
        else:
            print(f"{phase}: {bytes_text(done)} of {bytes_text(total)}, {rate_text(rate_bytes_s)}", flush=True)


class PhaseWatch:
    """The transfer watch of one phase; only Ctrl-C ends it."""

    def __init__(self, view: CopyView, name: str) -> None:
        self._view = view
        self._name = name

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self._view.tell(self._name, done_bytes, total_bytes, rate_bytes_s)

    def check(self) -> None:
        """Let the transfer go on."""

    @property
    def throttle(self) -> Throttle:
        return self._view.throttle


def bar(phase: str, done: int, total: int, rate_bytes_s: float) -> Table:
    """Return a progress bar with figures in one line, as wide as the screen. Pure."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, min_width=4)
    for _ in range(3):
        grid.add_column(no_wrap=True, justify="right")
    known = total > 0
    left = f", {seconds_text((total - done) / rate_bytes_s)} left" if rate_bytes_s > 0 and total > done else ""
    grid.add_row(
        Text(phase),
        ProgressBar(total=total if known else None, completed=done, pulse=not known),
        f"{int(100 * min(1.0, done / total))} %" if known else "",
        f"{bytes_text(done)} of {bytes_text(total)}" if known else "",
        f"{rate_text(rate_bytes_s)}{left}",
    )
    return grid


def receipt_text(told: CopyReceipt) -> Text:
    """Return what a copy has done, in three lines. Pure."""
    reused, mended = told["reused_bytes"], told["recopied_chunks"]
    facts = [
        f"{bytes_text(told['copied_bytes'])} copied in {seconds_text(told['copy_seconds'])}",
        f"{bytes_text(reused)} kept from before" if reused else "",
        f"{bytes_text(told['compared_bytes'])} read back and compared",
        f"{mended} chunks mended" if mended else "",
    ]
    return Text(
        f"{shown(told['destination'])} is the same as {shown(told['source'])}\n"
        f"{', '.join(filter(None, facts))}\nBLAKE3 {told['root_hash']}"
    )
