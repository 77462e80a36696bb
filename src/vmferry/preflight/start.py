"""Checks whether libvirt can start the VM again, at the source and at the destination."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from vmferry.model import SAVES, Changes, DiskMove, Finding, Lack, MoveRequest, Placed, Power, Severity, Technology, Vm
from vmferry.preflight.findings import Ends, blocker


def of_start(ends: Ends, vm: Vm, technology: Technology, moves: Collection[DiskMove], way_out: str) -> list[Finding]:
    """Find what the VM lacks to start where it is: its memory is loaded there, or has to be if the move is undone.

    `way_out`: a technology that needs no start, as "use --via live"; empty for none. On the way to another host a disc
    that is gone is no obstacle here: to come back it is taken out of its drive.
    """
    named = {f"{kind} {image.source}" for move in moves for image in move.images for kind in ("the image", "the disc")}
    lacks = [lack for lack in ends.host.lacks_to_start(vm.uuid) if _thing(lack) not in named]
    if technology in SAVES:
        return [_blocks(ends, vm, lack, way_out) for lack in lacks if not (ends.apart and lack.drive)]
    what = f"{vm.name} could not be started {'now' if vm.power is Power.OFF else 'again'}, since this is not there: "
    return [Finding(Severity.NOTE, what + lack.what, lack.cure) for lack in lacks] + _of_variables(ends, vm)


def _of_variables(ends: Ends, vm: Vm) -> list[Finding]:
    """Note missing NVRAM of a VM that is off: it was never started, or has lost its boot entries and keys."""
    if vm.power is not Power.OFF or vm.nvram is None or ends.host.exists(vm.nvram):
        return []
    what = f"the firmware's variables {vm.nvram} are not there: libvirt makes new ones from its template at the next"
    return [Finding(Severity.NOTE, f"{what} start", "put them back before, if the VM has boot entries or keys")]


def of_arrival(
    ends: Ends, vm: Vm, request: MoveRequest, files: Mapping[Path, Path], media: Mapping[str, Placed | None]
) -> list[Finding]:
    """Find what QEMU needs for a running VM and the destination lacks, also what is gone at the source."""
    if vm.power is Power.OFF:
        return []
    now = ends.host.definition_now(vm.uuid)
    changes = Changes(files=files, networks=request.networks, media=media)
    return [
        blocker(f"{vm.name} uses {lack.what}, which {ends.there.name} does not have", lack.cure)
        for lack in ends.there.lacks(now, changes)
    ]


def of_definition(ends: Ends, vm: Vm, request: MoveRequest) -> list[Finding]:
    """Find what the other host's libvirt says against the definition, before anything is copied for it."""
    said = ends.there.refusal(ends.host.definition(vm.uuid), Changes(networks=request.networks))
    if not said:
        return []
    what = f"libvirt of {ends.there.name} does not take the definition of {vm.name}: {said}"
    return [blocker(what, f"upgrade libvirt there, or take that out of it: virsh edit '{vm.name}'")]


def _thing(lack: Lack) -> str:
    """Return the kind and path of what is missing, as "the image /san1/a.img", without what it belongs to."""
    return lack.what.rpartition(" of disk ")[0] or lack.what.rpartition(" in ")[0]


def _blocks(ends: Ends, vm: Vm, lack: Lack, way_out: str) -> Finding:
    what = f"{ends.host.name} could not start {vm.name} again, since this is not there: {lack.what}"
    return blocker(what, ", or ".join(filter(None, (lack.cure, way_out))))
