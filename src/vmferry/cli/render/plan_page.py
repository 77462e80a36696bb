"""The page of a plan, for people: the output of `--plan`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vmferry.api.codec import Preview
from vmferry.cli.render.screen import fact_grid, shown
from vmferry.cli.render.sizes import bytes_text, seconds_text
from vmferry.cli.render.source_page import freed_text, source_lines
from vmferry.model import MIRRORS, SAVES, DiskMove, Finding, Plan, Severity


def plan_page(preview: Preview) -> RenderableType:
    """Return the page of a plan: its findings, then disks, figures and steps unless a blocker forbids the move."""
    plan = preview.plan
    parts: list[RenderableType] = [_headline(plan)]
    parts += finding_lines(plan.findings)
    if not plan.blockers:
        parts += _hosts(plan)
        parts += [Text(), *(_disk(disk) for disk in plan.disks), *_files(plan), Text(), _figures(plan)]
        parts += [Text(), *source_lines(plan.sources, "At the source, in the end")]
        parts += [Text(), Text("Steps", style="bold"), _steps(preview)]
    parts += _ruled_out(plan)
    parts += [Text(), Text("Nothing was changed.", style="dim")]
    return Group(*parts)


def findings_page(plan: Plan) -> RenderableType:
    """Return the page of the findings against a move, with their cures."""
    return Group(_headline(plan), *finding_lines(plan.findings))


def _headline(plan: Plan) -> RenderableType:
    if plan.blockers:
        return Text(f"{shown(plan.vm)} cannot be moved as it is", style="bold red")
    return Text(f"{shown(plan.vm)} can be moved: {plan.technology.console_name}", style="bold green")


def finding_lines(findings: tuple[Finding, ...]) -> Iterator[RenderableType]:
    """Yield the findings, blockers first, each with its cure."""
    for finding in sorted(findings, key=lambda f: f.severity is not Severity.BLOCKER):
        blocks = finding.severity is Severity.BLOCKER
        yield _entry("!" if blocks else "-", shown(finding.what), "red" if blocks else "yellow")
        if finding.cure:
            yield _entry("", f"cure: {shown(finding.cure)}", "")


def _entry(mark: str, text: str, style: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, width=2)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), Text(text, style=style))
    return grid


def _disk(disk: DiskMove) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    size = bytes_text(sum(image.data_bytes for image in disk.images))
    chain = f", {len(disk.images)} images" if len(disk.images) > 1 else ""
    grid.add_row(Text(shown(disk.target), style="bold"), f"{shown(disk.active.format)}, {size} to copy{chain}")
    for image in disk.images:
        grid.add_row(Text("from", style="dim"), Text(shown(image.source)))
        grid.add_row(Text("to", style="dim"), Text(shown(image.destination)))
    return grid


def _hosts(plan: Plan) -> Iterator[RenderableType]:
    """Yield, for a move to another host, both hosts and the networks that replace the present ones there."""
    if plan.to is None:
        return
    networks = [("network", f"{shown(here)} becomes {shown(there)}") for here, there in plan.networks.items()]
    yield Text()
    yield fact_grid(("from host", shown(plan.connect)), ("to host", shown(plan.to)), *networks)


def _files(plan: Plan) -> Iterator[RenderableType]:
    for file in plan.files:
        yield fact_grid(("file from", shown(file.source)), ("to", shown(file.destination)))


def _figures(plan: Plan) -> RenderableType:
    pause = "none" if plan.technology not in MIRRORS | SAVES else seconds_text(plan.pause_forecast_s)
    return fact_grid(
        ("to copy", bytes_text(plan.data_bytes)),
        ("time", f"about {seconds_text(plan.seconds_forecast)}"),
        ("pause", f"{pause} expected, {seconds_text(plan.max_pause_s)} allowed"),
        ("source", freed_text(plan.sources, ended=False) or "as it was"),
    )


def _steps(preview: Preview) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for number, step in enumerate(preview.steps, start=1):
        grid.add_row(str(number), Text(shown(step.says)))
        if step.no_return:
            grid.add_row("", Text("up to here everything is undone by itself, from here on only forward", style="dim"))
    return grid


def _ruled_out(plan: Plan) -> Iterator[RenderableType]:
    for ruled in plan.ruled_out:
        yield Text()
        yield Text(f"Not possible: {ruled.technology.console_name}", style="bold")
        for why in ruled.why:
            yield Padding(Text(shown(why)), (0, 0, 0, 2), expand=False)
