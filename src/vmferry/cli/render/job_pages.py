"""Pages about jobs, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.notice_pages import told_lines
from vmferry.cli.render.screen import shown, table
from vmferry.cli.render.sizes import bytes_text, rate_text, seconds_text
from vmferry.cli.render.words import STATE, STYLE
from vmferry.model import FINAL, ImageMove, JobView, Progress, StepRecord, Where


def jobs_page(jobs: Sequence[JobView]) -> RenderableType:
    """Return a table of jobs, newest first."""
    if not jobs:
        return Text("no jobs")
    made = table("job", "vm", "technology", "state", "done", "to", right=("done",))
    for job in sorted(jobs, key=lambda j: j.created, reverse=True):
        made.add_row(
            Text(shown(job.id)),
            Text(shown(job.plan.vm)),
            str(job.plan.technology),
            Text(STATE[job.state], style=STYLE.get(job.state, "")),
            "" if job.state in FINAL else percent_text(job.progress),
            Text("\n".join(sorted({_there(job, folder) for folder in _folders(job)}))),
        )
    return made


def job_page(job: JobView) -> RenderableType:
    """Return the page of one job: state, facts, and each step it took."""
    headline = Text.assemble(
        (shown(job.plan.vm), "bold"),
        f"  {job.plan.technology.console_name}  ",
        (STATE[job.state], STYLE.get(job.state, "")),
    )
    parts: list[RenderableType] = [headline, _facts(job)]
    if job.journal:
        parts += [Text(), _journal(job.journal)]
    return Group(*parts)


def percent_text(progress: Progress) -> str:
    """Return the percentage of bytes moved; empty while the bytes to move are not known."""
    total = sum(disk.total_bytes for disk in progress.disks)
    done = sum(disk.done_bytes for disk in progress.disks)
    return f"{min(100, 100 * done // total)} %" if total else ""


def figures_text(progress: Progress) -> str:
    """Return the known figures of "1.2 GiB of 3.0 GiB, 120 MiB/s, 15 s left, pause forecast 60 ms"."""
    return ", ".join(_figures(progress))


def _figures(progress: Progress) -> Iterator[str]:
    total = sum(disk.total_bytes for disk in progress.disks)
    if total:
        yield f"{bytes_text(sum(disk.done_bytes for disk in progress.disks))} of {bytes_text(total)}"
    if progress.rate_bytes_s > 0:
        yield rate_text(progress.rate_bytes_s)
    if progress.seconds_left is not None:
        yield f"{seconds_text(progress.seconds_left)} left"
    if progress.pause_forecast_s is not None:
        yield f"pause forecast {seconds_text(progress.pause_forecast_s)}"


def _folders(job: JobView) -> set[Where]:
    return {_folder(disk.active) for disk in job.plan.disks}


def _folder(image: ImageMove) -> Where:
    to = image.destination
    return to.parent if isinstance(to, Path) and not image.to_volume else to


def _there(job: JobView, folder: Where) -> str:
    """Return a destination folder, with the host's name if the VM goes to another host."""
    return f"{shown(job.plan.to)}: {shown(folder)}" if job.plan.to else shown(folder)


def _facts(job: JobView) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("job", shown(job.id))
    grid.add_row("from" if job.plan.relocates else "host", Text(shown(job.plan.connect)))
    if job.manager:
        grid.add_row("manager", Text(shown(job.manager)))
    for folder in sorted(_folders(job), key=str):
        grid.add_row("to", Text(_there(job, folder)))
    if job.sentence:
        grid.add_row("says", Text(shown(job.sentence), style=STYLE.get(job.state, "")))
    if job.state not in FINAL:
        grid.add_row("now", Text(shown(job.progress.now)))
        if job.progress.held:
            grid.add_row("", Text(shown(job.progress.held), style="yellow"))
        grid.add_row("next", Text(shown(job.progress.next)))
        grid.add_row("progress", figures_text(job.progress))
        grid.add_row("priority", shown(job.priority))
        grid.add_row("limits", f"{rate_text(job.limit_bytes_s)}, pause at most {seconds_text(job.max_pause_s)}")
    _lost(grid, job)
    if job.cancel_asked and job.state not in FINAL:
        grid.add_row("asked", "to cancel and undo")
    if job.clock:
        grid.add_row("clock", Text(shown(job.clock)))
    for line in told_lines(job.notices):
        grid.add_row("told", Text(shown(line)))
    grid.add_row("created", shown(job.created))
    if job.ended:
        grid.add_row("ended", shown(job.ended))
    return grid


def _lost(grid: Table, job: JobView) -> None:
    if job.lost:
        grid.add_row("lost", Text(f"{shown(job.lost)}, as an operator said", style="red"))
        for path in job.left:
            grid.add_row("", Text(f"there may be {shown(path)}"))


def _journal(journal: Sequence[StepRecord]) -> RenderableType:
    made = table("begun", "step", "came to")
    for record in journal:
        came_to = {True: "done", False: "failed", None: "not ended"}[record.ok]
        text = f"{came_to}: {record.sentence}" if record.sentence else came_to
        made.add_row(shown(record.begun[11:19] or record.begun), Text(shown(record.says)), Text(shown(text)))
    return made
