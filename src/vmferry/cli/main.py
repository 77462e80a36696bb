"""The command `vmferry`: a client of the worker. One noun a file; this one only lists the commands."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from vmferry.api.client.errors import ServerError
from vmferry.cli.agent import agent
from vmferry.cli.copy import copy
from vmferry.cli.cpu import cpu_baseline, cpu_check, cpu_limit
from vmferry.cli.hosts import host_add, host_list, host_remove, host_revoke, host_show
from vmferry.cli.jobs import (
    job_cancel,
    job_limit,
    job_priority,
    job_receipt,
    job_resolve,
    job_resume,
    job_retry,
    job_show,
    job_suspend,
    job_watch,
    jobs,
)
from vmferry.cli.lab import lab_down, lab_exec, lab_link, lab_status, lab_up
from vmferry.cli.limits import limit_host, limit_storage, limits
from vmferry.cli.migrate import migrate, migrate_storage
from vmferry.cli.notify import notify_clear, notify_set, notify_show, notify_test
from vmferry.cli.options import Connect, Globals, Runtime, State, globals_of
from vmferry.cli.recover import leftovers, recover
from vmferry.cli.render.screen import print_error, print_json
from vmferry.cli.render.words import LEFT
from vmferry.cli.storages import storage_add, storage_list, storage_remove
from vmferry.cli.transfers import (
    transfer_acknowledge,
    transfer_cancel,
    transfer_limit,
    transfer_list,
    transfer_priority,
    transfer_resume,
    transfer_show,
    transfer_suspend,
    transfer_watch,
)
from vmferry.cli.verify import verify
from vmferry.cli.vms import vm_show, vms
from vmferry.errors import VmferryError


def _group(says: str | None = None) -> typer.Typer:
    """Make a group of commands with plain help: rich would cost 0.1 s, and read brackets in it as markup."""
    return typer.Typer(
        name=None if says else "vmferry",
        help=says,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


app = _group()
vm = _group("One VM.")
job = _group("One job.")
transfer = _group("Copies that the worker does: `copy --detach`.")
limit = _group("What all jobs together may move; of one job: vmferry job limit.")
host = _group("Hosts that run vmferry agent.")
storage = _group("The storages that hosts serve.")
lab = _group("A private host, or several, to try things on, without risk.")
cpu = _group("Processor compatibility: VMs that run on hosts with different processors.")
notify = _group("Who is told of what becomes of jobs and copies.")

app.command("migrate-storage")(migrate_storage)
app.command("migrate")(migrate)
app.command("copy")(copy)
app.command("verify")(verify)
app.command("vms")(vms)
app.add_typer(vm, name="vm")
vm.command("show")(vm_show)
app.command("jobs")(jobs)
app.add_typer(job, name="job")
job.command("show")(job_show)
job.command("watch")(job_watch)
job.command("cancel")(job_cancel)
job.command("suspend")(job_suspend)
job.command("resume")(job_resume)
job.command("limit")(job_limit)
job.command("priority")(job_priority)
job.command("retry")(job_retry)
job.command("resolve")(job_resolve)
job.command("receipt")(job_receipt)
app.add_typer(transfer, name="transfer")
transfer.command("list")(transfer_list)
transfer.command("show")(transfer_show)
transfer.command("watch")(transfer_watch)
transfer.command("suspend")(transfer_suspend)
transfer.command("resume")(transfer_resume)
transfer.command("cancel")(transfer_cancel)
transfer.command("acknowledge")(transfer_acknowledge)
transfer.command("limit")(transfer_limit)
transfer.command("priority")(transfer_priority)
app.command("limits")(limits)
app.add_typer(limit, name="limit")
limit.command("host")(limit_host)
limit.command("storage")(limit_storage)
app.command("agent")(agent)
app.add_typer(host, name="host")
host.command("add")(host_add)
host.command("list")(host_list)
host.command("show")(host_show)
host.command("revoke")(host_revoke)
host.command("remove")(host_remove)
app.add_typer(storage, name="storage")
storage.command("add")(storage_add)
storage.command("list")(storage_list)
storage.command("remove")(storage_remove)
app.add_typer(cpu, name="cpu")
cpu.command("check")(cpu_check)
cpu.command("baseline")(cpu_baseline)
cpu.command("limit")(cpu_limit)
app.add_typer(notify, name="notify")
notify.command("show")(notify_show)
notify.command("set")(notify_set)
notify.command("clear")(notify_clear)
notify.command("test")(notify_test)
app.command("recover")(recover)
app.command("leftovers")(leftovers)
app.add_typer(lab, name="lab")
lab.command("up")(lab_up)
lab.command("down")(lab_down)
lab.command("status")(lab_status)
lab.command("link")(lab_link)
lab.command("exec")(lab_exec)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        from vmferry.process.version import VERSION

        print(f"vmferry {VERSION}")
        raise typer.Exit


@app.callback()
def everywhere(
    ctx: typer.Context,
    *,
    state: State = None,
    runtime: Runtime = None,
    connect: Connect = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Move running virtual machines and their storage on QEMU/KVM and libvirt.

    Exit codes: 0 done, 1 failed and undone, 2 usage, 3 refused (or no host to ask) with the VM untouched,
    4 stuck: an operator is needed, 5 cancelled and undone, 6 written since (verify).
    """
    given = globals_of(ctx)
    given.state, given.runtime, given.connect = state, runtime, connect


def main() -> NoReturn:
    """Run the command; every vmferry error becomes a sentence and an exit code."""
    given = Globals()
    _never_fail_to_print()
    try:
        app(obj=given)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer's 1 would mean: failed and undone
            sys.exit(LEFT)
        raise
    except VmferryError as error:
        _fail(type(error).__name__, str(error), error.exit_code, json=given.json)
    except ServerError as error:
        _fail(error.kind, str(error), error.exit_code, json=given.json)
    sys.exit(0)


def _never_fail_to_print() -> None:
    """Replace letters that the terminal's encoding lacks, so that a name with them does not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(kind: str, sentence: str, exit_code: int, *, json: bool) -> NoReturn:
    if json:
        print_json({"event": "error", "kind": kind, "sentence": sentence, "exit_code": exit_code})
    print_error(sentence)
    sys.exit(exit_code)
