"""`vmferry jobs` and `vmferry job ...`: what jobs do, and how they are steered."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import JobId, Json, NewMaxPause, NewRate, State, priority_text
from vmferry.cli.render.sizes import rate_text, seconds_text
from vmferry.cli.session import answer, client
from vmferry.errors import UsageError
from vmferry.model import JobState, JobView

if TYPE_CHECKING:
    from vmferry.api.client.client import Client

PATIENCE_S = 10.0
JOB_POLL_S = 0.1
"""Between two looks at a job that is to change: short enough that a person takes it for at once."""
Level = Annotated[str, typer.Argument(metavar="LEVEL", parser=priority_text, help="foreground, high, normal or low.")]
VmIsAt = Annotated[
    str, typer.Option("--vm-is-at", metavar="HOST", help="The host that has the VM; the other one is declared lost.")
]
Confirm = Annotated[
    str | None, typer.Option("--confirm", metavar="VM", help="The VM's name, in place of being asked for it.")
]


def jobs(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List jobs, newest first."""
    from vmferry.cli.render.job_pages import jobs_page

    found = client(ctx, state, json=json).jobs()
    answer(found, jobs_page(found), json=json)


def job_show(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Show what a job does, how far it is, and each step it took."""
    from vmferry.cli.render.job_pages import job_page

    found = client(ctx, state, json=json).job(job)
    answer(found, job_page(found), json=json)


def job_watch(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Watch a job to its end; ends as migrate-storage would have."""
    from vmferry.cli.watch import viewer, watch

    worker = client(ctx, state, json=json)
    raise typer.Exit(watch(worker, worker.job(job), viewer(json=json)))


def job_cancel(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Ask for a job to be cancelled and undone; returns at once."""
    from rich.text import Text

    asked = client(ctx, state, json=json).cancel(job)
    page = Text(f"job {asked.id} is asked to undo itself: `vmferry job watch {asked.id}` shows it")
    answer(asked, page, json=json)


def job_suspend(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Have a job stand still while it copies; the VM runs on. Waits a little until it does."""
    from rich.text import Text

    worker = client(ctx, state, json=json)
    asked = _stood(worker, worker.suspend(job))
    then = f"`vmferry job resume {asked.id}` lets it go on"
    says = (
        f"stands still: {then}"
        if asked.state is JobState.PAUSED
        else f"is {asked.state}: it stands as soon as it copies"
    )
    answer(asked, Text(f"job {asked.id} {says}"), json=json)


def job_resume(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Let a suspended job go on."""
    from rich.text import Text

    asked = client(ctx, state, json=json).resume(job)
    answer(asked, Text(f"job {asked.id} goes on: `vmferry job watch {asked.id}` shows it"), json=json)


def _stood(worker: Client, asked: JobView) -> JobView:
    until = time.monotonic() + PATIENCE_S
    while asked.state is JobState.RUNNING and time.monotonic() < until:
        time.sleep(JOB_POLL_S)
        asked = worker.job(asked.id)
    return asked


def job_limit(
    ctx: typer.Context,
    *,
    job: JobId,
    rate: NewRate,
    max_pause: NewMaxPause = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Change how fast a job copies, and with --max-pause how long it may pause the guest."""
    from rich.text import Text

    now = client(ctx, state, json=json).limit(job, rate.bytes_s, max_pause)
    limits = f"{rate_text(now.limit_bytes_s)}, pause at most {seconds_text(now.max_pause_s)}"
    answer(now, Text(f"job {now.id}: {limits}"), json=json)


def job_priority(ctx: typer.Context, *, job: JobId, level: Level, json: Json = False, state: State = None) -> None:
    """Change which jobs go before this one, while it waits or runs."""
    from rich.text import Text

    now = client(ctx, state, json=json).prefer(job, level)
    answer(now, Text(f"job {now.id}: priority {now.priority}"), json=json)


def job_retry(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Let a stuck job try its step again, once what stopped it is mended; start an undone or failed one anew."""
    from rich.text import Text

    asked = client(ctx, state, json=json).retry(job)
    answer(asked, Text(f"job {asked.id} goes on: `vmferry job watch {asked.id}` shows it"), json=json)


def job_resolve(
    ctx: typer.Context,
    *,
    job: JobId,
    vm_is_at: VmIsAt,
    confirm: Confirm = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Say where the VM is, when one of the two hosts of its move cannot be reached for good.

    The other host is declared lost, and is asked nothing more: with the source the job is undone, with the
    destination it goes on to its end. Switch the lost host off first, or its network: nothing else keeps a copy
    of the VM that runs there from running.
    """
    from rich.text import Text

    worker = client(ctx, state, json=json)
    found = worker.job(job)
    asked = worker.resolve(found.id, vm_is_at, confirm or _asked(found, vm_is_at))
    answer(asked, Text(f"{asked.lost} counts as lost: `vmferry job watch {asked.id}` shows what becomes"), json=json)


def _asked(job: JobView, vm_is_at: str) -> str:
    """Ask the person to type the VM's name, and return what was typed. Raises UsageError if it is empty."""
    from vmferry.cli.render.screen import shown

    lost = job.plan.to if vm_is_at == job.plan.connect else job.plan.connect
    print(shown(f"{lost} is to be declared lost, and {job.plan.vm} to go on from {vm_is_at}."), file=sys.stderr)
    print("If the VM runs on both, its disks part for good: switch the lost host off first.", file=sys.stderr)
    print(shown(f"Type the VM's name to confirm ({job.plan.vm}): "), end="", file=sys.stderr, flush=True)
    typed = sys.stdin.readline().strip()
    if not typed:
        raise UsageError(reason="nothing was confirmed, and nothing changed: type the VM's name, or give --confirm VM")
    return typed


def job_receipt(ctx: typer.Context, *, job: JobId, json: Json = False, state: State = None) -> None:
    """Print the receipt of a finished job."""
    from vmferry.cli.render.receipt_page import receipt_page

    found = client(ctx, state, json=json).receipt(job)
    answer(found, receipt_page(found), json=json)
