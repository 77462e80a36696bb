"""Checks that only a move to another host needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmferry.errors import NoSuchVm, PathRefused
from vmferry.model import Changes, Disk, Finding, MoveRequest, Placed, Power, Severity, Vm, Where
from vmferry.preflight.findings import Ends, blocker
from vmferry.preflight.platform import platform_findings
from vmferry.preflight.start import of_arrival, of_definition


def same_folder(disk: Disk) -> Where:
    """Return where a disk goes by default: the folder of the same path, or for a volume its own place."""
    where = disk.active.path
    return where.parent if isinstance(where, Path) and not disk.active.volume else where


def stays(ends: Ends, disk: Disk) -> bool:
    """Tell whether the disk's storage is the same one on both hosts, so that the disk needs no copy."""
    where = disk.active.path if disk.chain else None
    if not isinstance(where, Path) or disk.active.volume:
        return False
    try:
        here = ends.host.folder(where.parent)
        same = bool(here.storage) and ends.there.folder(where.parent).storage == here.storage
        return same and ends.there.exists(where)
    except PathRefused:
        return False  # it lies in no storage of one of them


def stays_note(ends: Ends, disk: Disk) -> Finding:
    what = f"disk {disk.target} ({disk.active.path}) stays where it is: {ends.there.name} has the same storage"
    return Finding(Severity.NOTE, what)


def of_vm(
    ends: Ends, vm: Vm, request: MoveRequest, files: Mapping[Path, Path], media: Mapping[str, Placed | None]
) -> list[Finding]:
    """Find what stands against the VM itself on the other host.

    `files`: old place to new place of all that comes along. `media`: what lies in drives there, as of Changes.
    """
    return [
        *_of_name(ends, vm),
        *_of_written(ends, vm, request, files),
        *of_arrival(ends, vm, request, files, media),
        *of_definition(ends, vm, request),
        *platform_findings(ends.host.needs(vm.uuid), ends.there.platform()),
    ]


def _of_name(ends: Ends, vm: Vm) -> list[Finding]:
    for known in (vm.uuid, vm.name):
        try:
            other = ends.there.vm(known)
        except NoSuchVm:
            continue
        what = f"{ends.there.name} has a VM {other.name} (UUID {other.uuid}) already"
        return [blocker(what, "rename it, or remove it if it is what an earlier move has left")]
    return []


def _of_written(ends: Ends, vm: Vm, request: MoveRequest, files: Mapping[Path, Path]) -> list[Finding]:
    """Find what the definition names of a host's own and the other host lacks.

    What is gone on both is not reported here.
    """
    definition = ends.host.definition(vm.uuid)
    missed_here = {lack.what for lack in ends.host.lacks(definition, Changes())}
    networks = [
        blocker(
            f"{vm.name} is connected to {network}, which {ends.there.name} does not have",
            f"make it there, or map it to another one with --network {network}=NAME",
        )
        for network in ends.there.misses(definition, request.networks)
    ]
    lacks = [
        blocker(f"{vm.name} uses {lack.what}, which {ends.there.name} does not have", lack.cure)
        for lack in ends.there.lacks(definition, Changes(files=files, cold=vm.power is Power.OFF))
        if lack.what not in missed_here
    ]
    return networks + lacks
