"""vmferry job resolve: say where a VM is, when one of the two hosts of its move is lost for good."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vmferry.cli.options import JobId, Json, State
from vmferry.cli.session import answer, client
from vmferry.errors import UsageError
from vmferry.model import JobView

VmIsAt = Annotated[
    str, typer.Option("--vm-is-at", metavar="HOST", help="The host that has the VM; the other one is declared lost.")
]
Confirm = Annotated[
    str | None, typer.Option("--confirm", metavar="VM", help="The VM's name, in place of being asked for it.")
]


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
    """The name, as a person types it. Raises UsageError without one."""
    from vmferry.cli.render.screen import shown

    lost = job.plan.to if vm_is_at == job.plan.connect else job.plan.connect
    print(shown(f"{lost} is to be declared lost, and {job.plan.vm} to go on from {vm_is_at}."), file=sys.stderr)
    print("If the VM runs on both, its disks part for good: switch the lost host off first.", file=sys.stderr)
    print(shown(f"Type the VM's name to confirm ({job.plan.vm}): "), end="", file=sys.stderr, flush=True)
    typed = sys.stdin.readline().strip()
    if not typed:
        raise UsageError(reason="nothing was confirmed, and nothing changed: type the VM's name, or give --confirm VM")
    return typed
