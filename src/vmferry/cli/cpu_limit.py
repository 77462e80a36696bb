"""vmferry cpu limit: give a VM a CPU that several hosts can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmferry.cli.options import Connect, Json, State, connect_uri
from vmferry.cli.session import answer, cpu_client
from vmferry.errors.system import in_words
from vmferry.model.processors import CpuLimitRequest

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="CPU",
        help="baseline (of its host and each --host), x86-64-v2, x86-64-v3, x86-64-v4, a CPU model, "
        "a file with a <cpu> element (with a / in its name), or none: as it was before.",
    ),
]
Beside = Annotated[
    list[str] | None,
    typer.Option("--host", metavar="HOST", help="A host that must be able to run it too; may be repeated."),
]


def cpu_limit(
    ctx: typer.Context,
    *,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.")],
    to: To,
    host: Beside = None,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Limit a VM's CPU so that it can move between hosts with different processors; from its next start on."""
    from vmferry.cli.render.cpu_pages import limited_page

    name, xml = _read(to)
    request = CpuLimitRequest(vm, connect_uri(ctx, connect), name, tuple(host or ()), xml)
    done = cpu_client(ctx, state, json=json).limit_cpu(request)
    answer(done, limited_page(done), json=json)


def _read(to: str) -> tuple[str, str]:
    """The CPU's name, and its XML if it comes from a file."""
    if not to.strip():
        raise typer.BadParameter("--to is empty: name a CPU, as x86-64-v2")
    if "/" not in to:
        return to, ""
    try:
        return Path(to).name, Path(to).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{to} cannot be read: {in_words(error)}") from error
