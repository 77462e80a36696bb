"""Decides what becomes of the discs in the drives of a VM that goes to another host."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vmferry.errors import PathRefused
from vmferry.hosts.interface import Host
from vmferry.model import Disk, Finding, MoveRequest, Placed, Severity, Vm
from vmferry.preflight.findings import Ends, blocker
from vmferry.preflight.relocation import stays, stays_note


@dataclass(frozen=True, slots=True)
class RemovableMedia:
    """What becomes of the discs in a VM's drives, by the drive's target."""

    copied: dict[str, Path] = field(default_factory=dict)
    """The folder that it is copied to."""
    media: dict[str, Placed | None] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)


def is_drive(disk: Disk) -> bool:
    return disk.device in ("cdrom", "floppy")


def discs(ends: Ends, vm: Vm, request: MoveRequest) -> RemovableMedia:
    """Decide what becomes of the disc in each drive that is not empty and that --disk does not name."""
    media = RemovableMedia()
    for disk in vm.disks:
        if is_drive(disk) and disk.chain and disk.target not in request.disks:
            _of_drive(media, ends, disk, request)
    return media


def _of_drive(told: RemovableMedia, ends: Ends, disk: Disk, request: MoveRequest) -> None:
    image = disk.active
    if request.iso == "eject":
        told.media[disk.target] = None
        told.found.append(_note(f"{image.path} in {disk.target} is ejected"))
    elif not isinstance(image.path, Path):
        told.found.append(_note(f"{image.path} in {disk.target} stays: it is reached over the network"))
    elif image.volume:
        what = f"{disk.target} is the drive {image.path} of {ends.host.name}"
        told.found.append(blocker(what, "eject it on the way with --iso eject"))
    elif stays(ends, disk):
        told.found.append(stays_note(ends, disk))
    elif _content(ends.host, image.path) is None:
        what = f"{image.path} in {disk.target} lies in no storage of {ends.host.name}, so it cannot be read there"
        told.found.append(blocker(what, "declare one with `vmferry storage add`, or use --iso eject"))
    elif request.iso == "same":
        _same(told, ends, disk, image.path)
    else:
        _copied(told, ends, disk, (request.path or image.path.parent) / image.path.name)


def _same(told: RemovableMedia, ends: Ends, disk: Disk, path: Path) -> None:
    if _equal(ends, path, path):
        told.found.append(_note(f"{path} in {disk.target} is taken from the same path of {ends.there.name}"))
        return
    what = f"{path} in {disk.target} is not on {ends.there.name} with the same content"
    told.found.append(blocker(what, "put it there, in a storage, or use --iso copy or --iso eject"))


def _copied(told: RemovableMedia, ends: Ends, disk: Disk, to: Path) -> None:
    """Have a disc copied, unless the destination has it with the same content: discs are shared by many VMs."""
    path = disk.active.path
    if isinstance(path, Path) and ends.there.exists(to) and _equal(ends, path, to):
        told.media[disk.target] = Placed(to, disk.active.format)
        told.found.append(_note(f"{path} in {disk.target} is at {to} already, with the same content"))
    else:
        told.copied[disk.target] = to.parent


def _equal(ends: Ends, here: Path, there: Path) -> bool:
    content = _content(ends.host, here)
    return bool(content) and content == _content(ends.there, there)


def _content(host: Host, path: Path) -> str | None:
    """Return what identifies the file's content on the host; None where the host does not serve the file."""
    try:
        return host.content_of(path)
    except PathRefused:
        return None


def _note(what: str) -> Finding:
    return Finding(Severity.NOTE, what)
