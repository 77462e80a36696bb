"""Submitting a move: planned only, left in the background, or watched. For the commands that move VMs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import DiskTo
from vmferry.cli.render.screen import print_error, show
from vmferry.cli.session import answer
from vmferry.model import JobView, MoveRequest, Where

if TYPE_CHECKING:
    from vmferry.api.client.client import Client

KeepSource = Annotated[bool, typer.Option("--keep-source", help="Keep the source files, renamed.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Take devices and LUNs that are not empty, too.")]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Say what would be done, and change nothing.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the job's id and leave it running.")]


def move(worker: Client, request: MoveRequest, *, plan: bool, detach: bool, json: bool) -> int:
    """Do what was asked for. Returns the exit code."""
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
