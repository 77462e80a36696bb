"""vmferry migrate-storage: move a VM's disks to another storage on the same host."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.notify_options import NotifyCommand, NotifySecret, NotifyUrl, receivers
from vmferry.cli.options import (
    Connect,
    Disks,
    DiskTo,
    Folder,
    Format,
    Json,
    Limit,
    MaxPause,
    OverlayDir,
    PriorityLevel,
    State,
    Via,
    connect_uri,
)
from vmferry.cli.screen import print_error, show
from vmferry.cli.session import answer, client
from vmferry.model import JobView, MoveRequest, Where

if TYPE_CHECKING:
    from vmferry.api.client import Client


KeepSource = Annotated[bool, typer.Option("--keep-source", help="Keep the source files, renamed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Take devices and LUNs that are not empty, too.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Say what would be done, and change nothing.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the job's id and leave it running.")]


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
        disks=_by_target(disk or ()),
        via=via,
        max_pause_s=max_pause,
        limit_bytes_s=limit.bytes_s if limit else None,
        keep_source=keep_source,
        overlays=overlay_dir,
        format=format_,
        overwrite=overwrite,
        priority=priority,
        notify=receivers(notify_command, notify_url, notify_secret),
    )
    worker = client(ctx, state, json=json)
    if plan:
        raise typer.Exit(_plan(worker, request, json=json))
    if detach:
        raise typer.Exit(_detach(worker, request, json=json))
    raise typer.Exit(_move(worker, request, json=json))


def _by_target(disks: Sequence[DiskTo]) -> dict[str, Where]:
    places: dict[str, Where] = {}
    for disk in disks:
        if disk.target in places:
            raise typer.BadParameter(f"--disk names {disk.target} twice")
        places[disk.target] = disk.to
    return places


def _plan(worker: Client, request: MoveRequest, *, json: bool) -> int:
    from vmferry.cli.plan_page import plan_page
    from vmferry.cli.words import DONE, REFUSED

    preview = worker.plan(request)
    answer(preview, plan_page(preview), json=json)
    return REFUSED if preview.plan.blockers else DONE


def _detach(worker: Client, request: MoveRequest, *, json: bool) -> int:
    from vmferry.cli.viewers import JsonLines
    from vmferry.cli.watching import in_background

    job = _submit(worker, request, json=json)
    if json:
        JsonLines().begin(job)
    else:
        print(job.id, flush=True)
        print(in_background(job), file=sys.stderr)
    return 0


def _move(worker: Client, request: MoveRequest, *, json: bool) -> int:
    from vmferry.cli.watching import viewer, watch

    return watch(worker, _submit(worker, request, json=json), viewer(json=json))


def _submit(worker: Client, request: MoveRequest, *, json: bool) -> JobView:
    """Submit; a refusal is shown to people finding by finding, each with its cure."""
    from vmferry.api.answered import Answered
    from vmferry.cli.plan_page import findings_page
    from vmferry.cli.words import REFUSED
    from vmferry.errors import Refused

    try:
        return worker.submit(request)
    except KeyboardInterrupt:
        print_error("interrupted: `vmferry jobs` shows whether the job was submitted")
        raise
    except Answered as error:
        if json or error.kind != Refused.__name__:
            raise
        plan = worker.plan(request).plan
        if not plan.blockers:  # what forbade it has gone meanwhile
            raise
        show(findings_page(plan), errors=True)
        raise typer.Exit(REFUSED) from error
