"""`vmferry cpu ...`: can a VM run on these hosts, what do they have in common, and limiting a VM to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmferry.cli.options import Connect, HostArgument, Json, State, VmName, connect_uri, saying
from vmferry.cli.session import answer, cpu_client
from vmferry.errors.system import in_words
from vmferry.model.processors import CpuLimitRequest

Xml = Annotated[bool, typer.Option("--xml", help="Print libvirt's <cpu> element alone, for cpu limit --to FILE.")]
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


def cpu_check(
    ctx: typer.Context,
    *,
    vm: VmName,
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


def _virt(text: str | None) -> str | None:
    if text not in (None, "kvm", "qemu"):
        raise ValueError(f"{text!r} is not one of kvm, qemu")
    return text


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


def cpu_limit(
    ctx: typer.Context,
    *,
    vm: VmName,
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
    """Return the CPU's name, and its XML if --to names a file. Raises BadParameter."""
    if not to.strip():
        raise typer.BadParameter("--to is empty: name a CPU, as x86-64-v2")
    if "/" not in to:
        return to, ""
    try:
        return Path(to).name, Path(to).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{to} cannot be read: {in_words(error)}") from error
