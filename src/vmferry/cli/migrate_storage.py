"""vmferry migrate-storage: move a VM's disks to another storage on the same host."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.moving import Detach, KeepSource, OnlyPlan, Overwrite, by_target, move
from vmferry.cli.notify_options import NotifyCommand, NotifySecret, NotifyUrl, receivers
from vmferry.cli.options import (
    Connect,
    Disks,
    Folder,
    Format,
    Json,
    Limit,
    MaxPause,
    OverlayDir,
    PriorityLevel,
    RemoveBases,
    State,
    Via,
    connect_uri,
)
from vmferry.cli.session import client
from vmferry.model import MoveRequest


def migrate_storage(
    ctx: typer.Context,
    *,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.")],
    path: Folder = None,
    disk: Disks = None,
    overlay_dir: OverlayDir = None,
    format_: Format = None,
    overwrite: Overwrite = False,
    via: Via = "auto",
    max_pause: MaxPause = 2.0,
    limit: Limit = None,
    priority: PriorityLevel = "normal",
    keep_source: KeepSource = False,
    remove_bases: RemoveBases = False,
    plan: OnlyPlan = False,
    detach: Detach = False,
    notify_command: NotifyCommand = "",
    notify_url: NotifyUrl = "",
    notify_secret: NotifySecret = None,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Move a VM's storage to another storage on its host, while the VM runs."""
    if path is None and not disk:
        raise typer.BadParameter("say where to: --path DIR for all the VM's files, or --disk TARGET=PLACE")
    request = MoveRequest(
        vm=vm,
        connect=connect_uri(ctx, connect),
        path=path,
        disks=by_target(disk or ()),
        via=via,
        max_pause_s=max_pause,
        limit_bytes_s=limit.bytes_s if limit else None,
        keep_source=keep_source,
        remove_bases=remove_bases,
        overlays=overlay_dir,
        format=format_,
        overwrite=overwrite,
        priority=priority,
        notify=receivers(notify_command, notify_url, notify_secret),
    )
    raise typer.Exit(move(client(ctx, state, json=json), request, plan=plan, detach=detach, json=json))
