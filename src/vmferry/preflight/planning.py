"""Turns a request into a plan: what moves where, by which technology, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from vmferry.errors import NoSuchDisk, UsageError
from vmferry.hosts.asking import AskUsers, ask_host
from vmferry.hosts.interface import Host
from vmferry.migration.forecast import DEFAULT_RATE_BYTES_S, move_s, pause_s
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import (
    OTHER_HOST,
    SAME_HOST,
    SAVES,
    Disk,
    DiskMove,
    FileMove,
    Finding,
    MoveRequest,
    Plan,
    Power,
    Ruled,
    Severity,
    Technology,
    Vm,
    Where,
)
from vmferry.model.names import unfit
from vmferry.preflight import chains, destination, findings, relocation, start, technologies, volumes
from vmferry.preflight.findings import Ends
from vmferry.preflight.moves import Wanted, disk_move, file_moves, lost_checkpoints
from vmferry.preflight.removable_media import RemovableMedia, discs, is_drive
from vmferry.preflight.source_fate import Move, judge, of_users
from vmferry.preflight.storages import check_served


def plan(
    request: MoveRequest,
    host: Host,
    there: Host,
    reserved: Mapping[str, int],
    factor: Callable[[Technology], float] = lambda _: 1.0,
    ask: AskUsers = ask_host,
) -> Plan:
    """Look at the VM and both storages and say what a job would do; changes nothing.

    `there`: the host that it goes to, or `host` itself. `reserved`: bytes that active jobs will still take, by
    file system (filesystem_of). `factor`: what a technology's forecast pause is multiplied by. `ask`: who needs a
    file. Blockers do not raise: they stand in the plan's findings. Raises UsageError for a request without sense.
    """
    _check_request(request)
    ends = Ends(host, there)
    vm = host.vm(request.vm)
    check_served(ends, vm, request)
    drives = discs(ends, vm, request) if ends.apart else RemovableMedia()
    wanted, notes = _wanted(request, vm, ends, drives)
    disks = [w.disk for w in wanted]
    moves = tuple(sorted((disk_move(vm, w) for w in wanted if w.disk.chain), key=lambda move: not move.frozen))
    files = tuple(f for f in file_moves(vm, moves, request.path, apart=ends.apart) if host.exists(f.source))
    judged = judge(Move(vm, moves, files, _discs(ends, wanted), request), host, ask, apart=ends.apart)
    moves, files = judged.disks(moves), judged.files(files)
    found = [*notes, *drives.found, *findings.of_disks(vm, disks)]
    found += findings.of_memory(vm, runnable=technologies.runnable(disks))
    found += volumes.of_volumes(there, vm, wanted, ask, overwrite=request.overwrite)
    found += of_users(judged, vm, moves)
    found += findings.of_images(ends, vm, moves, files)
    if ends.apart:
        found += relocation.of_vm(ends, vm, request, _brought(moves, files), drives.media)
    ruled = technologies.ruled_out_apart(vm, disks) if ends.apart else technologies.ruled_out(vm, disks, files)
    chosen, blockers = technologies.choose(request.via, ruled, apart=ends.apart)
    way_out = technologies.way_out(ruled, apart=ends.apart)
    most, too_deep = chains.of_depth(ends, vm, disks, chosen)
    found += [*blockers, *chains.of_other_jobs(vm, disks), *too_deep, *volumes.of_checkpoints(vm, moves)]
    found += destination.of_folders(ends, vm, moves, files, chosen)
    found += destination.of_allocation(moves)
    found += start.of_start(ends, vm, chosen, moves, way_out)
    found += findings.of_space(ends, vm, moves, chosen, reserved)
    learned = factor(chosen)
    least_s = _least_pause_s(vm, chosen, moves) * learned
    found += findings.of_pause(vm, chosen, least_s, request.max_pause_s, way_out, learned=learned > 1)
    found += findings.no_precopy(vm, chosen, way_out)
    made = _plan(request, vm, chosen, moves, files, found, ruled)
    made = replace(made, sources=tuple(judged.sources), media=drives.media, checkpoints=lost_checkpoints(vm, moves))
    return replace(made, pause_forecast_s=least_s, pause_factor=learned, deepest=most)


def _least_pause_s(vm: Vm, technology: Technology, moves: tuple[DiskMove, ...]) -> float:
    """Return the forecast pause, in seconds, of a guest that writes nothing meanwhile."""
    return pause_s(
        technology,
        remaining_bytes=0,
        rate_bytes_s=DEFAULT_RATE_BYTES_S,
        memory_bytes=vm.touched_bytes,
        disks=len(moves),
        precopy=vm.precopy,
    )


def _check_request(request: MoveRequest) -> None:
    if request.path is None and not request.disks and request.to is None:
        raise UsageError(reason="say where to: --path DIR for all of the VM's disks, or --disk TARGET=DIR for one")
    if request.via not in ("auto", *technologies.VIA):
        raise UsageError(reason=f"--via {request.via} is not known: use auto, {', '.join(technologies.VIA)}")
    if request.to == request.connect:
        raise UsageError(reason=f"the VM is on {request.to} already: `vmferry migrate-storage` moves its disks there")
    if request.max_pause_s <= 0:
        raise UsageError(reason="--max-pause must be more than nothing, 2s for one")
    if request.format not in (None, "raw", "qcow2"):
        raise UsageError(reason=f"--format {request.format} is not known: use raw or qcow2")
    for folder in filter(None, (request.path, request.overlays, *request.disks.values())):
        if isinstance(folder, Path) and not folder.is_absolute():
            raise UsageError(reason=f"{folder} is not an absolute path")
        if isinstance(folder, Path) and (why := unfit(folder)):
            raise UsageError(reason=f"nothing can be moved to {str(folder)!r}: {why}")


def _wanted(request: MoveRequest, vm: Vm, ends: Ends, drives: RemovableMedia) -> tuple[list[Wanted], list[Finding]]:
    """Return the disks to move, and a note for each that stays because of what it is. Raises NoSuchDisk, UsageError."""
    present = {disk.target: disk for disk in vm.disks}
    for target in request.disks:
        if target not in present:
            raise NoSuchDisk(vm=vm.name, target=target, present=", ".join(present) or "none")
    wanted, notes = [], []
    for disk in vm.disks:
        to = request.disks.get(disk.target) or _asked(request, disk, ends, drives)
        if isinstance(to, Finding):
            notes.append(to)
        elif to is not None:
            wanted.append(_to(request, disk, to, ends.there))
    off = vm.power is Power.OFF or not ends.apart
    if not any(off or (w.disk.device == "disk" and not w.disk.readonly) for w in wanted):
        raise UsageError(reason=f"{vm.name} has no disk that moves by itself: name one with --disk TARGET=DIR")
    return wanted, notes


def _asked(request: MoveRequest, disk: Disk, ends: Ends, drives: RemovableMedia) -> Where | Finding | None:
    """Return where a disk goes that --disk does not name, or a note why it stays; None when there is nothing to say."""
    if not disk.chain:
        return None
    if ends.apart and is_drive(disk):
        return drives.copied.get(disk.target)
    if ends.apart:
        if relocation.stays(ends, disk):
            return relocation.stays_note(ends, disk)
        return request.path or relocation.same_folder(disk)
    if request.path is None:
        return None
    why = findings.stays(disk)
    return request.path if why is None else findings.stays_note(disk, why, request.path)


def _to(request: MoveRequest, disk: Disk, to: Where, host: Host) -> Wanted:
    volume = host.volume(to)
    return Wanted(disk, volume.where if volume else to, volume, request.format, request.overlays)


def _discs(ends: Ends, wanted: list[Wanted]) -> frozenset[str]:
    """Return the targets of drives whose disc is copied to another host: at the source discs stay for others."""
    return frozenset(w.disk.target for w in wanted if ends.apart and is_drive(w.disk))


def _brought(moves: tuple[DiskMove, ...], files: tuple[FileMove, ...]) -> dict[Path, Path]:
    images = [(image.source, image.destination) for move in moves for image in move.images]
    both = images + [(file.source, file.destination) for file in files]
    return {old: new for old, new in both if isinstance(old, Path) and isinstance(new, Path)}


def _plan(
    request: MoveRequest,
    vm: Vm,
    technology: Technology,
    moves: tuple[DiskMove, ...],
    files: tuple[FileMove, ...],
    found: list[Finding],
    ruled: tuple[Ruled, ...],
) -> Plan:
    order = (*SAME_HOST, *OTHER_HOST)
    above = tuple(r for r in ruled if order.index(r.technology) < order.index(technology))
    data = sum(image.data_bytes for move in moves for image in move.images)
    memory = vm.memory_bytes if technology in SAVES else 0
    return Plan(
        vm=vm.name,
        uuid=vm.uuid,
        connect=request.connect,
        technology=technology,
        steps=STRATEGIES[technology].names,
        disks=moves,
        files=files,
        power=vm.power,
        persistent=vm.persistent,
        memory_bytes=vm.memory_bytes,
        touched_bytes=vm.touched_bytes,
        precopy=vm.precopy,
        keep_source=request.keep_source,
        max_pause_s=request.max_pause_s,
        overwrite=request.overwrite,
        agent=vm.agent and vm.power is Power.RUNNING,
        findings=tuple(sorted(set(found), key=lambda f: (f.severity is not Severity.BLOCKER, f.what))),
        ruled_out=above,
        to=request.to,
        networks=request.networks,
        seconds_forecast=move_s(data, limit_bytes_s=request.limit_bytes_s, memory_bytes=memory),
    )
