"""`vmferry lab ...`: a private host, or several, to try things on. Loads the lab when a command is called."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmferry.cli.options import Json, globals_of

At = Annotated[Path | None, typer.Option("--at", metavar="DIR", help="The lab's folder.", show_default=False)]
Hosts = Annotated[
    int | None,
    typer.Option(
        "--hosts", metavar="N", min=1, max=16, help="So many hosts, on a network of their own.", show_default=False
    ),
]


def lab_up(ctx: typer.Context, *, at: At = None, hosts: Hosts = None, json: Json = False) -> None:
    """Start a private host with two storages and a guest that writes; it stays until `lab down`.

    With --hosts: several hosts, each with two storages of its own, and one storage that all of them see.
    """
    globals_of(ctx).json = json
    from vmferry.cli.render.lab_page import print_lab
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    place = at or DEFAULT_PLACE
    print_lab(commands.up_several(hosts, place) if hosts else commands.up(place), json=json)


def lab_down(*, at: At = None) -> None:
    """End the lab and remove all of it."""
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    commands.down(at or DEFAULT_PLACE)
    print("the lab is gone")


def lab_status(ctx: typer.Context, *, at: At = None, json: Json = False) -> None:
    """Show the lab's hosts, storages and VMs, and how to reach them."""
    globals_of(ctx).json = json
    from vmferry.cli.render.lab_page import print_lab
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    print_lab(commands.status(at or DEFAULT_PLACE), json=json)


class Cut(StrEnum):
    """How a lab's link is cut: pulled, or silent in both directions, to the host, or from it."""

    CABLE = "cable"
    SILENT = "silent"
    IN = "in"
    OUT = "out"


def lab_link(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab, or `manager`.")],
    *,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="RATE", help="At most this: 100mbit, 5gbit; `none` lifts it.")
    ] = None,
    cut: Annotated[
        Cut | None, typer.Option("--cut", help="Pulled, or all that is sent is lost: both ways, or one.")
    ] = None,
    heal: Annotated[bool, typer.Option("--heal", help="Carry again what it carried before the cut.")] = False,
    at: At = None,
    json: Json = False,
) -> None:
    """Slow down, cut or heal the link of one host."""
    globals_of(ctx).json = json
    from vmferry.cli.render.lab_page import print_lab
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE
    from vmferry.lab.hosts.links import Cut as LinkCut

    words: dict[Cut, LinkCut] = {Cut.CABLE: "cable", Cut.SILENT: "silent", Cut.IN: "in", Cut.OUT: "out"}
    how = words[cut] if cut else None
    print_lab(commands.link(host, at or DEFAULT_PLACE, rate=rate, cut=how, heal=heal), json=json)


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
