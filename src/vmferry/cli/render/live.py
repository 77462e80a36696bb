"""The live view of a watched job on a terminal: a bar for each disk, what happens now and what comes next."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vmferry.api.codec import Event
from vmferry.cli.render.job_pages import figures_text
from vmferry.cli.render.screen import screen, shown
from vmferry.cli.render.sizes import bytes_text, rate_text, seconds_text
from vmferry.cli.render.viewers import print_end
from vmferry.cli.render.words import STATE, STYLE
from vmferry.model import DiskProgress, JobState, JobView, Receipt


class LiveView:
    """A view that redraws in place, and is erased when `rest` is called."""

    def __init__(self) -> None:
        self._console = screen()
        self._live: Live | None = None
        self._job: JobView | None = None

    def begin(self, job: JobView) -> None:
        self._job = job

    def show(self, event: Event) -> None:
        assert self._job is not None
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        self._live.update(picture(self._job, event, elapsed_s(self._job, datetime.now(UTC))))

    def say(self, text: str) -> None:
        self._console.print(shown(text), style="yellow")

    def rest(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def end(self, job: JobView, receipt: Receipt | None) -> None:
        self.rest()
        print_end(job, receipt)


def elapsed_s(job: JobView, now: datetime) -> float:
    created = datetime.fromisoformat(job.created)
    return max(0.0, (now - created.replace(tzinfo=created.tzinfo or UTC)).total_seconds())


def picture(job: JobView, event: Event, elapsed: float) -> RenderableType:
    """Return the whole live view as it is now. Pure."""
    parts: list[RenderableType] = [_headline(job, event)]
    if event.progress.disks:
        parts.append(_bars(event.progress.disks))
    parts.append(_lines(event, elapsed))
    return Group(*parts)


def _headline(job: JobView, event: Event) -> RenderableType:
    line = Text.assemble(
        (shown(job.plan.vm), "bold"), f"  {job.plan.technology.console_name}  ", (shown(job.id), "dim")
    )
    if event.state is not JobState.RUNNING:
        line.append(f"  {STATE[event.state]}", style=STYLE.get(event.state, ""))
    return line


def _bars(disks: tuple[DiskProgress, ...]) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, min_width=4)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True, justify="right")
    for disk in disks:
        known = disk.total_bytes > 0
        share = min(1.0, disk.done_bytes / disk.total_bytes) if known else 0.0
        grid.add_row(
            Text(shown(disk.target)),
            ProgressBar(total=disk.total_bytes if known else None, completed=disk.done_bytes, pulse=not known),
            f"{int(100 * share)} %" if known else "",
            f"{bytes_text(disk.done_bytes)} of {bytes_text(disk.total_bytes)}" if known else "",
        )
    return grid


def _lines(event: Event, elapsed: float) -> RenderableType:
    progress = event.progress
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    step = f"  (step {progress.step} of {progress.steps})" if progress.steps else ""
    grid.add_row("now", Text(shown(progress.now) + step))
    if progress.held:
        grid.add_row("", Text(shown(progress.held), style="yellow"))
    if progress.next:
        grid.add_row("next", Text(shown(progress.next)))
    grid.add_row("so far", Text(", ".join(filter(None, [seconds_text(elapsed), figures_text(progress)]))))
    if event.limit_bytes_s is not None:
        grid.add_row("limit", rate_text(event.limit_bytes_s))
    if event.sentence:
        grid.add_row("", Text(shown(event.sentence), style=STYLE.get(event.state, "yellow")))
    if event.cancel_asked:
        grid.add_row("", Text("cancel was asked for", style="yellow"))
    return grid
