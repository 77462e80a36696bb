"""The page of a receipt, for people."""

from __future__ import annotations

from shlex import quote

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.screen import shown, table
from vmferry.cli.render.sizes import bytes_text, rate_text, seconds_text
from vmferry.cli.render.source_page import freed_text, source_lines
from vmferry.model import DiskReceipt, Phase, Receipt, Technology
from vmferry.model.names import overlay_in

SHORT_HASH = 16


def receipt_page(receipt: Receipt) -> RenderableType:
    """Return the page of a receipt: disks from and to, phases, pauses, and where the source is."""
    parts: list[RenderableType] = [Text(_headline(receipt), style="bold green"), Text()]
    parts += [_disk(disk, receipt) for disk in receipt.disks]
    parts += [Text(), _phases(receipt.phases), Text(), _facts(receipt)]
    if receipt.sources:
        parts += [Text(), *source_lines(receipt.sources, "At the source", ended=True)]
    return Group(*parts)


def _headline(receipt: Receipt) -> str:
    titles = {str(technology): technology.console_name for technology in Technology}
    technology = titles.get(receipt.technology, receipt.technology)
    hosts = f" from {shown(receipt.from_host)} to {shown(receipt.to_host)}" if receipt.to_host else ""
    return f"{shown(receipt.vm)} was moved{hosts}: {shown(technology)}"


def _disk(disk: DiskReceipt, receipt: Receipt) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(
        Text(shown(disk.target), style="bold"),
        Text(
            f"{shown(disk.format)}, {bytes_text(disk.virtual_bytes)}, {bytes_text(disk.copied_bytes)} copied, "
            f"BLAKE3 {shown(disk.root_hash[:SHORT_HASH])}"
        ),
    )
    grid.add_row(Text("from", style="dim"), Text(_on(receipt.from_host, disk.from_)))
    grid.add_row(Text("to", style="dim"), Text(_on(receipt.to_host, disk.to)))
    return grid


def _on(host: str, place: str) -> str:
    return f"{shown(host)}: {shown(place)}" if host else shown(place)


def _phases(phases: tuple[Phase, ...]) -> RenderableType:
    right = ("time", "bytes", "rate")
    made = table("phase", *right, right=right)
    for phase in phases:
        rate = rate_text(phase.bytes / phase.seconds) if phase.bytes and phase.seconds else ""
        size = bytes_text(phase.bytes) if phase.bytes else ""
        made.add_row(Text(shown(phase.name)), seconds_text(phase.seconds), size, rate)
    return made


def _quiesced(receipt: Receipt) -> Text:
    if receipt.quiesced == "yes":
        return Text("frozen by the guest agent at the freeze, thawed right after it")
    if receipt.quiesced == "unsure":
        cure = f"perhaps frozen still, the guest agent does not answer: virsh domfsthaw {quote(receipt.vm)}"
        return Text(cure, style="red")
    return Text("not frozen at the freeze: the guest agent did not answer in time")


def _pause(receipt: Receipt) -> Text:
    text = Text(f"{seconds_text(receipt.pause_s)} measured, {seconds_text(receipt.pause_forecast_s)} forecast")
    if 0 < receipt.pause_allowed_s < receipt.pause_s:
        text.append(f", longer than the {seconds_text(receipt.pause_allowed_s)} allowed", style="yellow")
    return text


def _unusual(grid: Table, receipt: Receipt) -> None:
    """Add what a person should know of and most moves lack: dropped checkpoints, disks that stay or were ejected."""
    if receipt.checkpoints_dropped:
        dropped = ", ".join(map(shown, receipt.checkpoints_dropped))
        grid.add_row("checkpoints", f"dropped: {dropped}; take a full backup")
    if receipt.next_start:
        chosen = ", ".join(map(shown, receipt.next_start))
        what = "was left at the source" if receipt.to_host else "stays"
        sentence = f"another image, which its definition named, {what} for {chosen}"
        grid.add_row("next start", Text(sentence, style="yellow"))
    for label, disks, why, style in (
        ("stays", receipt.stayed, "it was no part of this move", "yellow"),
        ("ejected", receipt.ejected, "its file was gone", "red"),
    ):
        for number, disk in enumerate(disks):
            said = "somebody needs it, or its base was replaced" if overlay_in(disk) else why
            grid.add_row(label if number == 0 else "", Text(f"{shown(disk)}: {said}", style=style))


def _facts(receipt: Receipt) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("pause", _pause(receipt))
    grid.add_row("verified", "every byte of the base compared by hash" if receipt.verified else Text("no", style="red"))
    grid.add_row("rounds", str(receipt.rounds))
    if receipt.quiesced:
        grid.add_row("file systems", _quiesced(receipt))
    _unusual(grid, receipt)
    if receipt.clock:
        grid.add_row("clock", shown(receipt.clock))
    for number, path in enumerate(receipt.kept):
        grid.add_row("source kept" if number == 0 else "", Text(shown(path)))
    if receipt.lost:
        grid.add_row("source", Text(f"left on {shown(receipt.lost)}, which was declared lost", style="red"))
        for path in receipt.left:
            grid.add_row("", Text(shown(path)))
    elif receipt.sources:
        grid.add_row("source", freed_text(receipt.sources, ended=True))
    elif not receipt.kept:
        grid.add_row("source", "removed")
    if receipt.finished:
        grid.add_row("finished", shown(receipt.finished))
    grid.add_row("job", shown(receipt.job))
    return grid
