"""vmferry agent: serve this machine's libvirt and storages to a manager."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vmferry.cli.options import Connect, connect_uri, saying
from vmferry.cli.render.sizes import parse_link

DEFAULT_STATE = Path("/var/lib/vmferry-agent")

AgentState = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help=f"Folder of the agent's certificates and storages [VMFERRY_AGENT_STATE; {DEFAULT_STATE}].",
        show_default=False,
    ),
]
Listen = Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where managers and other agents come.")]
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="HOST:PORT", help="Prometheus metrics, without TLS: on loopback only."),
]
Link = Annotated[
    int | None,
    typer.Option(
        "--link-speed",
        metavar="SPEED",
        parser=saying(parse_link),
        help="What the network to other hosts carries, 1gbit for one [as the network cards say].",
        show_default=False,
    ),
]


def agent(
    ctx: typer.Context,
    *,
    listen: Listen = "0.0.0.0:8443",
    metrics: Metrics = None,
    link_speed: Link = None,
    new_token: Annotated[bool, typer.Option("--new-token", help="Print a token to join with, once, and end.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Forget the manager: join anew at the next start.")] = False,
    connect: Connect = None,
    state: AgentState = None,
) -> None:
    """Serve this machine to a manager: its VMs by libvirt, its storages by name.

    Until a manager has let it in, with `vmferry host add`, it answers nothing else.
    """
    from vmferry.agent import process
    from vmferry.hosts.remote.join import split_address

    folder = (state or Path(os.environ.get("VMFERRY_AGENT_STATE") or DEFAULT_STATE)).absolute()
    if new_token:
        print(process.new_token(folder))
    elif forget:
        process.forget(folder)
    else:
        at = split_address(metrics) if metrics else None
        process.run(process.Options(folder, split_address(listen), connect_uri(ctx, connect), at, link_speed))
