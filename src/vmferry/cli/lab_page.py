"""A lab, for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.screen import shown, table
from vmferry.cli.session import answer
from vmferry.lab.commands import LabStatus


def print_lab(lab: LabStatus, *, json: bool) -> None:
    answer(lab, lab_page(lab), json=json)


def lab_page(lab: LabStatus) -> RenderableType:
    """Where it is, what is in it, and the next command to type."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("lab", Text(shown(lab.at)))
    facts.add_row("connect", Text(shown(lab.uri or "its libvirtd is down")))
    for number, storage in enumerate(lab.storages):
        facts.add_row("storages" if number == 0 else "", Text(shown(storage)))
    parts: list[RenderableType] = [facts, Text(), _vms(lab)]
    if lab.uri and lab.vms and len(lab.storages) > 1:
        parts += [Text(), Text("Try:"), Text(_try(lab))]
    return Group(*parts)


def _vms(lab: LabStatus) -> RenderableType:
    made = table("vm", "state", "writes acknowledged", "disks", right=("writes acknowledged",))
    for vm in lab.vms:
        made.add_row(
            Text(shown(vm.name)),
            "running" if vm.running else "shut off",
            str(vm.acknowledged),
            Text("\n".join(shown(disk) for disk in vm.disks)),
        )
    return made


def _try(lab: LabStatus) -> str:
    return f"  vmferry --connect '{lab.uri}' migrate-storage {lab.vms[0].name} --path {lab.storages[1]}"
