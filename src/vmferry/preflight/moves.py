"""Computes where each image and file goes: pure path arithmetic."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vmferry.model import Disk, DiskMove, FileMove, Image, ImageMove, Vm, Volume, Where


@dataclass(frozen=True, slots=True)
class Wanted:
    """A disk that is to move, and where to: a folder, or a volume."""

    disk: Disk
    to: Where
    volume: Volume | None = None
    format: str | None = None
    overlays: Path | None = None
    """The folder of the overlays where an end has none of its own."""

    @property
    def folder(self) -> Path | None:
        return self.to if self.volume is None and isinstance(self.to, Path) else None


def disk_move(vm: Vm, wanted: Wanted) -> DiskMove:
    """Plan one disk's move: its whole chain goes to the folder under its own names, a single image to a volume.

    In a folder each image names its backing file anew.
    """
    disk = wanted.disk
    below = (*disk.chain[1:], None)
    images = tuple(_image_move(vm, wanted, image, backing) for image, backing in zip(disk.chain, below, strict=True))
    return DiskMove(
        target=disk.target,
        images=images,
        overlays=_overlays(vm, wanted),
        overlay_copies=_overlay_copies(vm, wanted, images[0].destination),
        frozen=not disk.readonly and disk.device == "disk",
    )


def _overlays(vm: Vm, wanted: Wanted) -> Path:
    """Return what overlay names begin with at the source: the image's own path.

    For an image on a volume: a name in the folder that was named, or in the one that it goes to.
    """
    path = wanted.disk.active.path
    if isinstance(path, Path) and not wanted.disk.active.volume:
        return path
    return (wanted.overlays or wanted.folder or Path("/")) / f"{_stem(vm, wanted.disk)}.source"


def _overlay_copies(vm: Vm, wanted: Wanted, destination: Where) -> Path:
    """Return what overlay names begin with at the destination: the destination's own path.

    For a volume: a name in the folder that was named, or in the one that the image comes from.
    """
    if wanted.folder is not None and isinstance(destination, Path):
        return destination
    path = wanted.disk.active.path
    left = path.parent if isinstance(path, Path) and not wanted.disk.active.volume else Path("/")
    return (wanted.overlays or left) / _stem(vm, wanted.disk)


def lost_checkpoints(vm: Vm, moves: Collection[DiskMove]) -> tuple[str, ...]:
    """Return libvirt's checkpoints that stay behind: their bitmaps lie in the images, and go only with whole files."""
    by_content = any(not image.bytewise for move in moves for image in move.images)
    return vm.checkpoints if by_content else ()


def _stem(vm: Vm, disk: Disk) -> str:
    return f"{vm.uuid}-{disk.target}"


def _image_move(vm: Vm, wanted: Wanted, image: Image, backing: Image | None) -> ImageMove:
    folder, volume = wanted.folder, wanted.volume
    to_format = None if wanted.format in (None, image.format) else wanted.format
    raw = (to_format or image.format) == "raw"
    larger = raw and volume is not None and not volume.resizes and volume.size_bytes > image.virtual_bytes
    return ImageMove(
        source=image.path,
        destination=wanted.to if folder is None else folder / _name(vm, wanted, image, to_format),
        format=image.format,
        virtual_bytes=image.virtual_bytes,
        data_bytes=image.data_bytes,
        backing=None if folder is None else _backing(image, backing, folder),
        backing_format=None if backing is None else backing.format,
        to_format=to_format,
        from_volume=image.volume,
        to_volume=volume is not None,
        from_slice_bytes=image.slice_bytes,
        to_slice_bytes=image.virtual_bytes if larger else None,
    )


def _name(vm: Vm, wanted: Wanted, image: Image, to_format: str | None) -> str:
    """Return the image's file name at the destination: its own.

    One that comes from a volume, or changes its format, is named after VM, disk and format.
    """
    if isinstance(image.path, Path) and not image.volume and to_format is None:
        return image.path.name
    name = vm.name.replace("/", "_")
    return f"{name}-{wanted.disk.target}.{to_format or image.format}"


def _backing(image: Image, backing: Image | None, folder: Path) -> str | None:
    """Return the backing file that the header must name at the destination.

    None when what it says stays true (a relative name), or it has none.
    """
    if backing is None or image.backing is None or not isinstance(backing.path, Path):
        return None
    destination = folder / backing.path.name
    if Path(image.backing).is_absolute():
        return str(destination)
    relative = os.path.relpath(destination, folder)
    return None if relative == image.backing else relative


def file_moves(vm: Vm, moves: Collection[DiskMove], path: Path | None, *, apart: bool = False) -> tuple[FileMove, ...]:
    """Plan the NVRAM's move, when it lies in a folder that a disk leaves, or the VM leaves its host; else empty."""
    if vm.nvram is None or not moves:
        return ()
    left = {move.overlays.parent for move in moves if not move.active.from_volume}
    stays = not any(vm.nvram.is_relative_to(folder) for folder in left)
    if stays and not apart:
        return ()
    folder = path or next(iter(moves)).overlay_copies.parent
    return (FileMove(vm.nvram, folder / vm.nvram.name, stays),)
