"""`vmferry copy`: one disk from one place to another, here and now or, detached, by the worker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import (
    Connect,
    Json,
    Limit,
    NotifyCommand,
    NotifySecret,
    NotifyUrl,
    Rate,
    State,
    connect_uri,
    globals_of,
    priority_text,
    receivers,
    saying,
    state_place,
)
from vmferry.cli.render.screen import print_error, print_json, show
from vmferry.cli.render.sizes import parse_days
from vmferry.cli.render.words import LEFT
from vmferry.cli.session import answer, transfer_client
from vmferry.model import NOBODY, Receivers

if TYPE_CHECKING:
    from vmferry.transfer import Place

Source = Annotated[str, typer.Argument(metavar="SRC", help="A file, a block device, or a URL as qemu-img takes it.")]
Destination = Annotated[str, typer.Argument(metavar="DST", help="A new file, or a device or URL that is overwritten.")]
SourceFormat = Annotated[str, typer.Option("-f", metavar="FMT", help="Of SRC: raw, qcow2, vmdk, vhdx, vpc.")]
MadeFormat = Annotated[
    str | None,
    typer.Option(
        "-O", metavar="FMT", help="Of DST: raw or qcow2 [that of SRC for a file, else raw].", show_default=False
    ),
]
Streams = Annotated[int, typer.Option("--streams", min=1, max=32, help="Reads and writes at a time.")]
TlsFolder = Annotated[
    Path | None,
    typer.Option("--tls-dir", metavar="DIR", help="ca-cert.pem, client-cert.pem, client-key.pem; or keys.psk."),
]

if TYPE_CHECKING:
    from vmferry.api.client.transfers import TransferClient
    from vmferry.model.transfers import TransferRequest
    from vmferry.transfer import Place

SHORTEST_RETRY_S = 5
Detach = Annotated[bool, typer.Option("--detach", help="Let the worker do it, and return at once with an id.")]
DetachedPriority = Annotated[
    str | None,
    typer.Option(
        "--priority",
        metavar="LEVEL",
        parser=priority_text,
        help="With --detach: foreground, high, normal or low [normal].",
    ),
]
Acknowledge = Annotated[
    bool, typer.Option("--acknowledge", help="With --detach: DST gets its name as soon as it is whole.")
]


def copy(
    ctx: typer.Context,
    *,
    source: Source,
    destination: Destination,
    from_format: SourceFormat = "raw",
    to_format: MadeFormat = None,
    limit: Limit = None,
    streams: Streams = 4,
    tls_dir: TlsFolder = None,
    detach: Detach = False,
    priority: DetachedPriority = None,
    retry_delay: RetryDelay = None,
    no_progress: NoProgress = None,
    acknowledge: Acknowledge = False,
    notify_command: NotifyCommand = "",
    notify_url: NotifyUrl = "",
    notify_secret: NotifySecret = None,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Copy a disk and prove the copy; the same command goes on after an interruption.

    SRC must not change meanwhile. A file that exists at DST is never overwritten.
    """
    globals_of(ctx).json = json
    here = _place(source, from_format, tls_dir)
    there = _place(destination, to_format or _format_there(here, destination), tls_dir)
    receivers_given = receivers(notify_command, notify_url, notify_secret)
    patience = RetryOptions(retry_delay, no_progress, priority, acknowledge, receivers_given)
    if detach:
        request = request_of(here, there, connect_uri(ctx, connect), patience)
        request = replace(request, streams=streams, limit_bytes_s=limit.bytes_s if limit else None)
        submit(transfer_client(ctx, state, json=json), request, json=json)
        return
    patience.refuse()
    try:
        _carry(here, there, state_place(ctx, state).state / "copies", limit, streams, json=json)
    except KeyboardInterrupt:
        print_error("interrupted: the same command goes on from here")
        raise typer.Exit(LEFT) from None


def _place(text: str, format_: str, tls: Path | None) -> Place:
    """Return the place named on the command line; a relative path starts at the current directory."""
    from vmferry.qemu.places import Scheme
    from vmferry.transfer import Place

    named = Place(text, format_)
    if named.scheme is Scheme.PATH:
        return Place(str(named.path.expanduser().absolute()), format_)
    return Place(text, format_, tls.absolute() if tls and named.encrypted else None)


def _format_there(source: Place, destination: str) -> str:
    """Return the destination's format if none is given: the source's from file to file, else raw."""
    from vmferry.transfer import Place
    from vmferry.transfer.endpoints.location import locate
    from vmferry.transfer.endpoints.route import PlaceKind

    ends = (locate(source).kind, locate(Place(destination)).kind)
    return source.format if ends == (PlaceKind.FILE, PlaceKind.FILE) else "raw"


def _carry(source: Place, destination: Place, memory: Path, limit: Rate | None, streams: int, *, json: bool) -> None:
    from vmferry.cli.render.copy_page import CopyView, receipt_text
    from vmferry.transfer import Throttle
    from vmferry.transfer.standalone import DiskCopy
    from vmferry.transfer.verification.receipts import receipt

    with CopyView(Throttle(limit.bytes_s if limit else None), json=json) as view:
        done = DiskCopy(source, destination, memory).run(view.phase("copying"), view.phase("comparing"), streams)
    result = receipt(source, destination, done)
    if json:
        print_json(result)
    else:
        show(receipt_text(result))


def _days(text: str | float) -> float:
    return text if isinstance(text, float) else parse_days(text)


def _delay(text: str | float) -> float:
    found = _days(text)
    if found < SHORTEST_RETRY_S:
        raise ValueError(f"{text!r} is less than {SHORTEST_RETRY_S}s")
    return found


RetryDelay = Annotated[
    float | None,
    typer.Option(
        "--retry-delay", metavar="TIME", parser=saying(_delay), help="With --detach: between two tries [10m]."
    ),
]
NoProgress = Annotated[
    float | None,
    typer.Option(
        "--no-progress",
        metavar="TIME",
        parser=saying(_days),
        help="With --detach: given up when it fails for so long; 0 at the first failure [14d].",
    ),
]


@dataclass(frozen=True)
class RetryOptions:
    """The options of `vmferry copy` that only --detach takes."""

    retry_delay_s: float | None
    no_progress_s: float | None
    priority: str | None
    hand_over: bool
    notify: Receivers

    def refuse(self) -> None:
        """Raise BadParameter if an option was given that needs --detach."""
        patience = (self.retry_delay_s, self.no_progress_s, self.priority)
        if self.hand_over or patience != (None, None, None) or self.notify != NOBODY:
            raise typer.BadParameter(
                "--retry-delay, --no-progress, --priority, --acknowledge and --notify-... need --detach"
            )

    def given(self) -> dict[str, object]:
        """Return the options that were given, by the names of TransferRequest's fields."""
        named: dict[str, object] = {
            "retry_delay_s": self.retry_delay_s,
            "no_progress_s": self.no_progress_s,
            "priority": self.priority,
        }
        named |= {"hand_over": self.hand_over, "notify": self.notify}
        return {name: value for name, value in named.items() if value is not None}


def request_of(source: Place, destination: Place, connect: str, patience: RetryOptions) -> TransferRequest:
    """Return the transfer request for the worker, from the command line's values."""
    from vmferry.model.transfers import TransferRequest

    made = TransferRequest(
        source=source.at,
        destination=destination.at,
        connect=connect,
        source_format=source.format,
        destination_format=destination.format,
        tls=source.tls or destination.tls,
    )
    return replace(made, **patience.given())  # type: ignore[arg-type]


def submit(worker: TransferClient, request: TransferRequest, *, json: bool) -> None:
    """Queue the transfer, and print how it can be followed."""
    from rich.text import Text

    found = worker.submit_transfer(request)
    page = Text(f"transfer {found.id} is {found.state}: `vmferry transfer watch {found.id}` shows it")
    answer(found, page, json=json)
