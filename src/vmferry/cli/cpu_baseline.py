"""vmferry cpu baseline: what the processors of several hosts have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import Json, State, saying
from vmferry.cli.session import answer, cpu_client


def _virt(text: str | None) -> str | None:
    if text not in (None, "kvm", "qemu"):
        raise ValueError(f"{text!r} is not one of kvm, qemu")
    return text


Xml = Annotated[bool, typer.Option("--xml", help="Print libvirt's <cpu> element alone, for cpu limit --to FILE.")]
Virt = Annotated[
    str | None,
    typer.Option(
        "--virt",
        metavar="kvm|qemu",
        parser=saying(_virt),
        help="Of KVM or of emulated guests; kvm where all hosts have it.",
        show_default=False,
    ),
]


def cpu_baseline(
    ctx: typer.Context,
    *,
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="libvirt URIs or names of added hosts.")],
    xml: Xml = False,
    virt: Virt = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Find the greatest CPU that all these hosts can give their guests."""
    from vmferry.cli.render.cpu_pages import baseline_page

    found = cpu_client(ctx, state, json=json).cpu_baseline(hosts, virt)
    if xml:
        print(found.cpu.xml.strip())
    else:
        answer(found, baseline_page(found), json=json)
