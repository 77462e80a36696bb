"""vmferry copy: one disk from one place to another, without libvirt and without a worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.copy_detached import (
    Acknowledge,
    Detach,
    DetachedPriority,
    NoProgress,
    RetryDelay,
    RetryOptions,
    request_of,
    submit,
)
from vmferry.cli.notify_options import NotifyCommand, NotifySecret, NotifyUrl, receivers
from vmferry.cli.options import Connect, Json, Limit, Rate, State, connect_uri, globals_of, state_place
from vmferry.cli.render.screen import print_error, print_json, show
from vmferry.cli.render.words import LEFT
from vmferry.cli.session import transfer_client

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
    told = receivers(notify_command, notify_url, notify_secret)
    patience = RetryOptions(retry_delay, no_progress, priority, acknowledge, told)
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
    """A path is taken from where the user stands."""
    from vmferry.qemu.places import Scheme
    from vmferry.transfer import Place

    named = Place(text, format_)
    if named.scheme is Scheme.PATH:
        return Place(str(named.path.expanduser().absolute()), format_)
    return Place(text, format_, tls.absolute() if tls and named.encrypted else None)


def _format_there(source: Place, destination: str) -> str:
    """From file to file the format stays; devices and exports hold raw disks."""
    from vmferry.transfer import Place
    from vmferry.transfer.endpoints.probe import end_of
    from vmferry.transfer.endpoints.route import PlaceKind

    ends = (end_of(source).kind, end_of(Place(destination)).kind)
    return source.format if ends == (PlaceKind.FILE, PlaceKind.FILE) else "raw"


def _carry(source: Place, destination: Place, memory: Path, limit: Rate | None, streams: int, *, json: bool) -> None:
    from vmferry.cli.render.copy_page import CopyView, receipt_text
    from vmferry.transfer import Throttle
    from vmferry.transfer.standalone import DiskCopy
    from vmferry.transfer.verification.receipts import receipt

    with CopyView(Throttle(limit.bytes_s if limit else None), json=json) as view:
        done = DiskCopy(source, destination, memory).run(view.phase("copying"), view.phase("comparing"), streams)
    told = receipt(source, destination, done)
    if json:
        print_json(told)
    else:
        show(receipt_text(told))
