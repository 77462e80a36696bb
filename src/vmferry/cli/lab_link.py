"""vmferry lab link: slow down, cut and heal what joins the lab's hosts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from vmferry.cli.lab import At
from vmferry.cli.options import Json, globals_of


class Cut(StrEnum):
    """How a link is cut: pulled, or silent in both directions, to the host, or from it."""

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
