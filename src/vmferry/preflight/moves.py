"""Where each image and file goes: pure path arithmetic."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from vmferry.model import Disk, DiskMove, FileMove, Image, ImageMove, Vm


def disk_move(disk: Disk, folder: Path, shared: Collection[Path]) -> DiskMove:
    """The whole chain goes to the folder under its own names, each image naming its backing file anew."""
    below = (*disk.chain[1:], None)
    return DiskMove(
        target=disk.target,
        images=tuple(
            _image_move(image, backing, folder, shared=image.path in shared)
            for image, backing in zip(disk.chain, below, strict=True)
        ),
        frozen=not disk.readonly and disk.device == "disk",
    )


def _image_move(image: Image, backing: Image | None, folder: Path, *, shared: bool) -> ImageMove:
    destination = folder / image.path.name
    return ImageMove(
        source=image.path,
        destination=destination,
        format=image.format,
        virtual_bytes=image.virtual_bytes,
        data_bytes=image.data_bytes,
        backing=_backing(image, backing, folder),
        backing_format=None if backing is None else backing.format,
        shared=shared,
    )


def _backing(image: Image, backing: Image | None, folder: Path) -> str | None:
    """What the header must say there; None when what it says stays true (a relative name)."""
    if backing is None or image.backing is None:
        return None
    destination = folder / backing.path.name
    if Path(image.backing).is_absolute():
        return str(destination)
    relative = os.path.relpath(destination, folder)
    return None if relative == image.backing else relative


def file_moves(vm: Vm, moves: Collection[DiskMove], path: Path | None) -> tuple[FileMove, ...]:
    """The NVRAM, when it lies in a folder that a disk leaves."""
    if vm.nvram is None or not moves:
        return ()
    left = {move.active.source.parent for move in moves}
    if not any(vm.nvram.is_relative_to(folder) for folder in left):
        return ()
    folder = path or next(iter(moves)).active.destination.parent
    return (FileMove(vm.nvram, folder / vm.nvram.name),)
