"""`vmferry recover` and `vmferry leftovers`: after a crash, and what jobs left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import Connect, Json, State, connect_uri
from vmferry.cli.render.screen import print_json, shown
from vmferry.cli.render.words import DONE, STATE, STUCK, ended_in_words
from vmferry.cli.session import client, transfer_client
from vmferry.model import FINAL, JobState, JobView
from vmferry.model.transfers import NEEDS_WORKER

if TYPE_CHECKING:
    from vmferry.api.client.client import Client

ENDED = FINAL | {JobState.STUCK}


Reap = Annotated[bool, typer.Option("--reap", help="Remove them.")]


def recover(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """Go on with what a crash left, wait until no job is in flight, and say what became of each.

    Transfers go on as well; they are not waited for.
    """
    worker = transfer_client(ctx, state, json=json)
    found = worker.recover()
    transfers = [each for each in worker.transfers() if each.state in NEEDS_WORKER]
    if not json:
        for each in transfers:
            print(f"transfer {each.id} goes on: `vmferry transfer watch {each.id}`", flush=True)
    for job in found:
        if job.state not in ENDED and not json:
            print(shown(f"{job.plan.vm}: job {job.id} goes on"), flush=True)
    became = [_settled(worker, job) for job in found]
    for job in became:
        _say(job, json=json)
    if not became and not transfers and not json:
        print("nothing was in flight")
    raise typer.Exit(STUCK if any(_needs_someone(job) for job in became) else DONE)


def _settled(worker: Client, job: JobView) -> JobView:
    """Return the job once it has ended, or is paused and waits for a person."""
    for event in worker.watch(job.id):
        if event.state is JobState.PAUSED and event.progress.now:  # without it no worker has taken it up yet
            break
    return worker.job(job.id)


def _needs_someone(job: JobView) -> bool:
    return job.state not in FINAL


def _say(job: JobView, *, json: bool) -> None:
    from vmferry.api.codec import to_json

    if json:
        print_json(to_json(job))
    elif job.state is JobState.DONE:
        print(shown(f"{job.plan.vm}: {STATE[job.state]}, `vmferry job receipt {job.id}`"))
    else:
        print(shown(ended_in_words(job)))


def leftovers(
    ctx: typer.Context,
    *,
    reap: Reap = False,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """List what jobs left on a host and no job in flight needs; with --reap remove it."""
    from vmferry.cli.render.screen import print_json, shown

    worker, uri = client(ctx, state, json=json), connect_uri(ctx, connect)
    found = worker.reap(uri) if reap else worker.leftovers(uri)
    if json:
        print_json(found)
        return
    for left in found:
        print(f"removed {shown(left)}" if reap else shown(left))
    stay = worker.leftovers(uri) if reap else ()
    for left in stay:
        print(f"left as it is: {shown(left)}")
    if not (found or stay):
        print("nothing was left")
