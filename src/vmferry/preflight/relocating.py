"""What only a move to another host has to look at."""

from __future__ import annotations

from pathlib import Path

from vmferry.errors import NoSuchVm
from vmferry.model import Disk, Finding, MoveRequest, Vm, Where
from vmferry.preflight.findings import Ends, blocker


def same_folder(disk: Disk) -> Where:
    """Where a disk goes of which nothing is said: the folder of the same name."""
    where = disk.active.path
    return where.parent if isinstance(where, Path) and not disk.active.volume else where


def of_vm(ends: Ends, vm: Vm, request: MoveRequest) -> list[Finding]:
    return [*_of_name(ends, vm), *_of_networks(ends, vm, request)]


def _of_name(ends: Ends, vm: Vm) -> list[Finding]:
    for known in (vm.uuid, vm.name):
        try:
            other = ends.there.vm(known)
        except NoSuchVm:
            continue
        what = f"{ends.there.name} has a VM {other.name} (UUID {other.uuid}) already"
        return [blocker(what, "rename it, or remove it if it is what an earlier move has left")]
    return []


def _of_networks(ends: Ends, vm: Vm, request: MoveRequest) -> list[Finding]:
    definition = ends.host.definition(vm.uuid)
    return [
        blocker(
            f"{vm.name} is connected to {network}, which {ends.there.name} does not have",
            f"make it there, or map it to another one with --network {network}=NAME",
        )
        for network in ends.there.misses(definition, request.networks)
    ]
