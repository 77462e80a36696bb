"""`vmferry migrate-storage` and `vmferry migrate`: a VM's disks to other storage, a VM to another host."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import (
    Connect,
    Disks,
    DiskTo,
    Folder,
    Format,
    Json,
    Limit,
    MaxPause,
    NotifyCommand,
    NotifySecret,
    NotifyUrl,
    OverlayDir,
    PriorityLevel,
    RemoveBases,
    State,
    Via,
    VmName,
    connect_uri,
    receivers,
    saying,
)
from vmferry.cli.render.screen import print_error, show
from vmferry.cli.session import answer, client
from vmferry.model import JobView, MoveRequest, Where

if TYPE_CHECKING:
    from vmferry.api.client.client import Client

KeepSource = Annotated[bool, typer.Option("--keep-source", help="Keep the source files, renamed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Take devices and LUNs that are not empty, too.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Say what would be done, and change nothing.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the job's id and leave it running.")]


ISO = ("copy", "same", "eject")
Networks = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="HERE=THERE", help="A network or bridge there in the place of one here."),
]


def move(worker: Client, request: MoveRequest, *, plan: bool, detach: bool, json: bool) -> int:
    """Plan, submit or carry out a move. Return the exit code."""
    if plan:
        return _plan(worker, request, json=json)
    if detach:
        return _detach(worker, request, json=json)
    return _move(worker, request, json=json)


def by_target(disks: Sequence[DiskTo]) -> dict[str, Where]:
    places: dict[str, Where] = {}
    for disk in disks:
        if disk.target in places:
            raise typer.BadParameter(f"--disk names {disk.target} twice")
        places[disk.target] = disk.to
    return places


def _plan(worker: Client, request: MoveRequest, *, json: bool) -> int:
    from vmferry.cli.render.plan_page import plan_page
    from vmferry.cli.render.words import DONE, REFUSED

    preview = worker.plan(request)
    answer(preview, plan_page(preview), json=json)
    return REFUSED if preview.plan.blockers else DONE


def _detach(worker: Client, request: MoveRequest, *, json: bool) -> int:
    from vmferry.cli.render.viewers import JsonLines
    from vmferry.cli.watch import in_background

    job = _submit(worker, request, json=json)
    if json:
        JsonLines().begin(job)
    else:
        print(job.id, flush=True)
        print(in_background(job), file=sys.stderr)
    return 0


def _move(worker: Client, request: MoveRequest, *, json: bool) -> int:
    from vmferry.cli.watch import viewer, watch

    return watch(worker, _submit(worker, request, json=json), viewer(json=json))


def _submit(worker: Client, request: MoveRequest, *, json: bool) -> JobView:
    """Submit a move; show a refusal to people finding by finding, each with its cure."""
    from vmferry.api.client.errors import ServerError
    from vmferry.cli.render.plan_page import findings_page
    from vmferry.cli.render.words import REFUSED
    from vmferry.errors import Refused

    try:
        return worker.submit(request)
    except KeyboardInterrupt:
        print_error("interrupted: `vmferry jobs` shows whether the job was submitted")
        raise
    except ServerError as error:
        if json or error.kind != Refused.__name__:
            raise
        plan = worker.plan(request).plan
        if not plan.blockers:  # what forbade it has gone meanwhile
            raise
        show(findings_page(plan), errors=True)
        raise typer.Exit(REFUSED) from error


def migrate_storage(
    ctx: typer.Context,
    *,
    vm: VmName,
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


def _iso(text: str) -> str:
    if text not in ISO:
        raise ValueError(f"{text!r} is not one of {', '.join(ISO)}")
    return text


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
    vm: VmName,
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
