"""Arguments that the commands about hosts and storages share."""

from __future__ import annotations

from typing import Annotated

import typer

HostName = Annotated[str, typer.Argument(metavar="HOST", help="The host's name.")]
StorageName = Annotated[str, typer.Argument(metavar="NAME", help="The storage's name on that host.")]
OnHost = Annotated[str, typer.Option("--host", metavar="HOST", help="The host that has it.")]
