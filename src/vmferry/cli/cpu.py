"""vmferry cpu check: can a host run a VM's CPU?"""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import Connect, HostArgument, Json, State, connect_uri
from vmferry.cli.session import answer, cpu_client


def cpu_check(
    ctx: typer.Context,
    *,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.")],
    host: HostArgument,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Say whether a host can run a VM's CPU, now with its state, and what would help. Exit code 3: it cannot."""
    from vmferry.cli.render.cpu_pages import check_page
    from vmferry.cli.render.words import DONE, REFUSED

    found = cpu_client(ctx, state, json=json).check_cpu(vm, connect_uri(ctx, connect), host)
    answer(found, check_page(found), json=json)
    raise typer.Exit(DONE if found.possible else REFUSED)
