"""vmferry lab exec: a command as one of the lab's hosts, or the manager, would run it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vmferry.cli.lab import At


def lab_exec(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab, or `manager`.")],
    words: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="After `--`.")],
    *,
    at: At = None,
) -> None:
    """Run a command on one host of a lab of several, or in the manager's place."""
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    argv = commands.several(at or DEFAULT_PLACE).node(host).inside(*words)
    os.execv(argv[0], argv)
