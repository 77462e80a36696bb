"""Tests what folders that files would go to really bear, with one file that is removed at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vmferry.model import SAVES, Disk, DiskMove, FileMove, Finding, FolderUse, ImageMove, Severity, Technology, Vm
from vmferry.model.names import with_suffix
from vmferry.preflight.findings import Ends

PAST_THE_CACHE = ("none", "directsync")
_LONGEST_SUFFIX = ".vmferry-abcd2345.r31.qcow2.part"
_PAGE = 4096
_OWN_FILES = 8
"""Overlays of two rounds, memory, and what is made for an instant."""


def of_folders(
    ends: Ends, vm: Vm, moves: Sequence[DiskMove], files: Collection[FileMove], technology: Technology
) -> list[Finding]:
    """Probe each folder that exists and can be written; other findings tell of the rest."""
    found: list[Finding] = []
    for path, use in uses(vm, moves, files, technology).items():
        folder = ends.there.folder(path)
        if folder.exists and folder.writable:
            found += ends.there.probe(path, use)
    return found


def of_allocation(moves: Sequence[DiskMove]) -> list[Finding]:
    """Note raw disks whose storage is fully allocated at the source: zeros are not written at the destination."""
    images = {image.source: image for move in moves for image in move.images if not image.from_volume}
    return [
        Finding(
            Severity.NOTE,
            f"{image.source} has all its storage allocated; what of it holds zeros takes none at {image.destination}",
            f"allocate it again once it has moved: fallocate -l {image.virtual_bytes} '{image.destination}'",
        )
        for image in images.values()
        if image.to.format == image.format == "raw" and not image.to_volume and _is_whole(image)
    ]


def _is_whole(image: ImageMove) -> bool:
    return 0 < image.virtual_bytes <= image.data_bytes


def uses(
    vm: Vm, moves: Sequence[DiskMove], files: Collection[FileMove], technology: Technology
) -> Mapping[Path, FolderUse]:
    """Return, by folder that images go to, what comes into it."""
    disks = {disk.target: disk for disk in vm.disks}
    into: dict[Path, list[tuple[ImageMove, Disk]]] = {}
    for move in moves:
        for image in move.images:
            if isinstance(image.destination, Path) and not image.to_volume:
                into.setdefault(image.destination.parent, []).append((image, disks[move.target]))
    memory = vm.memory_bytes if technology in SAVES and moves else 0
    uses = {path: _use(images, files, path) for path, images in into.items()}
    if memory and (first := moves[0].overlay_copies.parent) in uses:
        use = uses[first]
        uses[first] = FolderUse(
            use.files, max(use.largest_bytes, memory), use.longest_name_bytes, use.direct, use.raw_bytes
        )
    return uses


def _use(images: Sequence[tuple[ImageMove, Disk]], files: Collection[FileMove], path: Path) -> FolderUse:
    names = [image.destination.name for image, _ in images if isinstance(image.destination, Path)]
    names += [file.destination.name for file in files if file.destination.parent == path]
    direct = [image for image, disk in images if disk.cache in PAST_THE_CACHE]
    return FolderUse(
        files=2 * len(names) + _OWN_FILES,
        largest_bytes=max(_bytes(image) for image, _ in images),
        longest_name_bytes=max(len(with_suffix(name, _LONGEST_SUFFIX).encode()) for name in names),
        direct=bool(direct),
        raw_bytes=tuple(sorted({image.virtual_bytes for image in direct if _is_odd(image)})),
    )


def _is_odd(image: ImageMove) -> bool:
    """Tell whether a raw disk may end within a sector: none are larger than a page."""
    return image.to.format == "raw" and image.virtual_bytes % _PAGE != 0


def _bytes(image: ImageMove) -> int:
    """Return how long the file may become.

    A raw file has the disk's size, a qcow2 is no longer than what it holds and what is written meanwhile.
    """
    return image.virtual_bytes if image.to.format == "raw" else image.data_bytes
