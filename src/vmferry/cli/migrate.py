"""vmferry migrate: move a VM, and its storage with it, to another host."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.moving import Detach, KeepSource, OnlyPlan, Overwrite, by_target, move
from vmferry.cli.notify_options import NotifyCommand, NotifySecret, NotifyUrl, receivers
from vmferry.cli.options import (
    Connect,
    Disks,
    Folder,
    Json,
    Limit,
    MaxPause,
    PriorityLevel,
    RemoveBases,
    State,
    Via,
    connect_uri,
    saying,
)
from vmferry.cli.session import client
from vmferry.model import MoveRequest

ISO = ("copy", "same", "eject")


def _iso(text: str) -> str:
    if text not in ISO:
        raise ValueError(f"{text!r} is not one of {', '.join(ISO)}")
    return text


Networks = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="HERE=THERE", help="A network or bridge there in the place of one here."),
]
Iso = Annotated[
    str,
    typer.Option(
        "--iso",
        metavar="|".join(ISO),
        parser=saying(_iso),
        help="Discs in its drives: copied, taken from the same path there (of the same content), or ejected.",
    ),
]


def migrate(
    ctx: typer.Context,
    *,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.")],
    to: Annotated[str, typer.Option("--to", metavar="HOST", help="A host that was added: `vmferry host list`.")],
    path: Folder = None,
    disk: Disks = None,
    network: Networks = None,
    iso: Iso = "copy",
    overwrite: Overwrite = False,
    via: Via = "auto",
    max_pause: MaxPause = 2.0,
    limit: Limit = None,
    priority: PriorityLevel = "normal",
    keep_source: KeepSource = False,
    remove_bases: RemoveBases = False,
    notify_command: NotifyCommand = "",
    notify_url: NotifyUrl = "",
    notify_secret: NotifySecret = None,
    plan: OnlyPlan = False,
    detach: Detach = False,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Move a VM with its storage to another host, while the VM runs; each file to the folder of the same name,
    unless --path or --disk says another."""
    request = MoveRequest(
        vm=vm,
        connect=connect_uri(ctx, connect),
        to=to,
        path=path,
        disks=by_target(disk or ()),
        networks=dict(_mapped(words) for words in network or ()),
        iso=iso,
        via=via,
        max_pause_s=max_pause,
        limit_bytes_s=limit.bytes_s if limit else None,
        keep_source=keep_source,
        remove_bases=remove_bases,
        overwrite=overwrite,
        priority=priority,
        notify=receivers(notify_command, notify_url, notify_secret),
    )
    raise typer.Exit(move(client(ctx, state, json=json), request, plan=plan, detach=detach, json=json))


def _mapped(words: str) -> tuple[str, str]:
    here, equals, there = words.partition("=")
    if not (here and equals and there):
        raise typer.BadParameter(f"--network {words!r} is not HERE=THERE")
    return here, there
