"""Pages about VMs, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.screen import shown, table
from vmferry.cli.render.sizes import bytes_text
from vmferry.cli.render.words import POWER
from vmferry.model import Disk, Vm, Where


def vms_page(vms: Sequence[Vm]) -> RenderableType:
    """Return a table of VMs like `virsh list --all`, with the storage each VM lies on."""
    if not vms:
        return Text("no VMs")
    made = table("name", "state", "disks", "size", "storage", right=("disks", "size"))
    for vm in vms:
        moving = [disk for disk in vm.disks if disk.device == "disk" and disk.chain]
        made.add_row(
            Text(shown(vm.name)),
            POWER[vm.power],
            str(len(moving)),
            bytes_text(sum(image.data_bytes for disk in moving for image in disk.chain)),
            Text("\n".join(sorted({shown(_storage(disk.active.path)) for disk in moving}))),
        )
    return made


def _storage(where: Where) -> Where:
    return where.parent if isinstance(where, Path) and not where.is_relative_to("/dev") else where


def vm_page(vm: Vm) -> RenderableType:
    """Return the page of one VM, with its disks' chains, snapshots, NVRAM and TPM."""
    return Group(Text(shown(vm.name), style="bold"), _facts(vm), *(part for disk in vm.disks for part in _disk(disk)))


def _facts(vm: Vm) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    kept = "" if vm.persistent else ", transient"
    grid.add_row("state", f"{POWER[vm.power]}{kept}")
    grid.add_row("uuid", shown(vm.uuid))
    grid.add_row("memory", bytes_text(vm.memory_bytes))
    grid.add_row("guest agent", "answers" if vm.agent else "does not answer")
    if vm.nvram:
        grid.add_row("NVRAM", Text(shown(vm.nvram)))
    if vm.tpm:
        grid.add_row("TPM", Text(shown(vm.tpm)))
    if vm.snapshots:
        grid.add_row("snapshots", Text(", ".join(shown(name) for name in vm.snapshots)))
    if vm.no_save:
        grid.add_row("not savable", Text(shown(vm.no_save), style="yellow"))
    return grid


def _disk(disk: Disk) -> Iterator[RenderableType]:
    yield Text()
    yield Text.assemble((shown(disk.target), "bold"), f"  {', '.join(_kinds(disk))}")
    for image in disk.chain:
        size = f"{bytes_text(image.data_bytes)} of {bytes_text(image.virtual_bytes)}"
        yield Padding(Text(shown(image.path)), (0, 0, 0, 2), expand=False)
        yield Padding(Text(f"{shown(image.format)}, {size}", style="dim"), (0, 0, 0, 4), expand=False)


def _kinds(disk: Disk) -> Iterator[str]:
    yield shown(disk.device)
    if disk.source != "file":
        yield "empty" if disk.source == "none" else shown(disk.source)
    if len(disk.chain) > 1:
        yield f"{len(disk.chain)} images, the active one first"
    for holds, word in (
        (disk.readonly, "read-only"),
        (disk.shareable, "shareable"),
        (disk.transient, "transient"),
        (disk.encrypted, "encrypted"),
    ):
        if holds:
            yield word
    if disk.block_job:
        yield f"block job running: {shown(disk.block_job)}"
