"""Which folders of a move lie in no storage that its hosts' agents serve: asked for all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from vmferry.errors import FoldersRefused, PathRefused
from vmferry.hosts.interface import Host
from vmferry.model import Disk, MoveRequest, Vm
from vmferry.preflight.findings import Ends
from vmferry.preflight.removable_media import is_drive


def check_served(ends: Ends, vm: Vm, request: MoveRequest) -> None:
    """Raise FoldersRefused with each folder of the move that its host does not serve, and what declares it.

    Without that the first refusal ends the plan, and a person learns of one folder after the other.
    """
    left = {folder for disk in vm.disks for folder in _folders(disk) if _is_read(ends, disk, request)}
    moving = [disk for disk in vm.disks if _moves(ends, disk, request)]
    entered = {where for disk in moving for where in _destinations(disk, request)}
    refused = [*_refused(ends.host, left), *_refused(ends.there, entered)]
    if not refused:
        return
    commands = dict.fromkeys(
        f"`vmferry storage add NAME --host {host.name} --path {quote(str(folder))}`" for host, folder, _ in refused
    )
    told = dict.fromkeys(f"{host.name} does not serve {folder} ({reason})" for host, folder, reason in refused)
    raise FoldersRefused(refused="; ".join(told), commands=" and ".join(commands))


def _is_read(ends: Ends, disk: Disk, request: MoveRequest) -> bool:
    """Tell whether the source is asked for the disk's files: to move them, or to copy a disc that comes along."""
    return _moves(ends, disk, request) or (ends.apart and is_drive(disk) and request.iso != "eject")


def _moves(ends: Ends, disk: Disk, request: MoveRequest) -> bool:
    if disk.target in request.disks:
        return True
    return not is_drive(disk) and (ends.apart or request.path is not None)


def _folders(disk: Disk) -> Iterator[Path]:
    for image in disk.chain:
        if isinstance(image.path, Path) and not image.volume:
            yield image.path.parent


def _destinations(disk: Disk, request: MoveRequest) -> Iterator[Path]:
    to = request.disks.get(disk.target) or request.path
    if isinstance(to, Path):
        yield to
    elif to is None:
        yield from _folders(disk)


def _refused(host: Host, folders: set[Path]) -> Iterator[tuple[Host, Path, str]]:
    """Yield what the host refuses, without folders that lie below another one that it refuses."""
    refused: list[Path] = []
    for folder in sorted(folders):
        if any(folder.is_relative_to(above) for above in refused):
            continue
        try:
            host.exists(folder)
        except PathRefused as error:
            refused.append(folder)
            yield host, folder, str(error.fields["reason"])
