"""Pages about transfers, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.notice_pages import told_lines
from vmferry.cli.render.screen import shown, table
from vmferry.cli.render.sizes import bytes_text, rate_text, seconds_text
from vmferry.model.transfers import AT_WORK, OVER, TransferState, TransferView

STYLE = {
    TransferState.TRANSFERRED: "green",
    TransferState.ACKNOWLEDGED: "green",
    TransferState.TRANSIENT: "yellow",
    TransferState.SUSPENDED: "yellow",
    TransferState.CANCELLED: "yellow",
    TransferState.ERROR: "red",
}


def transfers_page(transfers: Sequence[TransferView]) -> RenderableType:
    """Return a table of transfers, in the order given."""
    if not transfers:
        return Text("no transfers")
    made = table("transfer", "state", "priority", "done", "from", "to", right=("done",))
    for transfer in transfers:
        made.add_row(
            Text(transfer.id),
            Text(state_text(transfer), style=STYLE.get(transfer.state, "")),
            transfer.priority,
            percent_text(transfer),
            Text(shown(transfer.source)),
            Text(shown(transfer.destination)),
        )
    return made


def transfer_page(transfer: TransferView) -> RenderableType:
    """Return the page of one transfer: its state, progress, error, and what to do."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, text in _facts(transfer):
        style = STYLE.get(transfer.state, "") if name in ("state", "says") else ""
        grid.add_row(name, Text(shown(text), style=style))
    return grid


def _facts(transfer: TransferView) -> list[tuple[str, str]]:
    facts = [
        ("transfer", transfer.id),
        ("state", state_text(transfer)),
        ("from", f"{transfer.source} ({transfer.source_format})"),
        ("to", f"{transfer.destination} ({transfer.destination_format})"),
        ("progress", figures_text(transfer)),
        ("held back", transfer.held),
        ("says", transfer.sentence),
        ("failures", str(transfer.failures or "")),
        ("tried again", (transfer.retry_at or "")[:19]),
        ("priority", transfer.priority),
        ("limit", rate_text(transfer.limit_bytes_s)),
        ("retry", _patience_text(transfer)),
        ("BLAKE3", transfer.root_hash),
        *(("told", line) for line in told_lines(transfer.notices)),
        ("created", transfer.created[:19]),
        ("ended", (transfer.ended or "")[:19]),
        ("next", next_text(transfer)),
    ]
    return [(name, text) for name, text in facts if text]


def _patience_text(transfer: TransferView) -> str:
    if transfer.state in OVER:
        return ""
    patience = f"given up after {seconds_text(transfer.no_progress_s)} without progress"
    if transfer.no_progress_s < transfer.retry_delay_s:
        patience = "never"
    return patience if patience == "never" else f"after {seconds_text(transfer.retry_delay_s)}, {patience}"


def state_text(transfer: TransferView) -> str:
    """Return a transfer's state, with its phase and a pending cancel."""
    asked = ", to be cancelled" if transfer.cancel_asked and transfer.state not in OVER else ""
    phase = f" ({transfer.phase})" if transfer.phase == "comparing" and transfer.state in AT_WORK else ""
    return f"{transfer.state}{phase}{asked}"


def percent_text(transfer: TransferView) -> str:
    if transfer.state in OVER or not transfer.total_bytes:
        return ""
    return f"{min(100, 100 * transfer.done_bytes // transfer.total_bytes)} %"


def figures_text(transfer: TransferView) -> str:
    """Return the known figures of "1.2 GiB of 3.0 GiB, 120 MiB/s"; empty if there are none."""
    if transfer.state in OVER or not transfer.total_bytes:
        return ""
    figures = f"{bytes_text(transfer.done_bytes)} of {bytes_text(transfer.total_bytes)}"
    return f"{figures}, {rate_text(transfer.rate_bytes_s)}" if transfer.rate_bytes_s > 0 else figures


def next_text(transfer: TransferView) -> str:
    """Return what a person has to do with a transfer; empty if nothing."""
    match transfer.state:
        case _ if transfer.cancel_asked:
            return ""
        case TransferState.TRANSFERRED:
            return f"`vmferry transfer acknowledge {transfer.id}` gives it its name"
        case TransferState.ERROR:
            return f"mend that, then `vmferry transfer resume {transfer.id}`, or cancel it"
        case TransferState.SUSPENDED:
            return f"`vmferry transfer resume {transfer.id}`"
        case _:
            return ""
