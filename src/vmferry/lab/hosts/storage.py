"""The lab's storages: file systems of their own, in sparse files, loop-mounted below the lab's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmferry.errors import LabNeeds, LabPlaceUnfit, LabProgramFailed
from vmferry.lab.programs import run

FORMAT = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
    "exfat": ("mkfs.exfat",),
}
MOUNT = {"exfat": ("mount.exfat-fuse",)}
"""By FUSE, where the kernel may have none; it has no hard links and no owners."""


@dataclass(frozen=True)
class StorageSpec:
    """A storage to make: its name, file system (ext4, xfs, btrfs, exfat) and size."""

    name: str
    fs: str = "ext4"
    size_mib: int = 2048
    direct: bool = False
    """No second page cache below the file system, as on a disk; measurements need that. Slower to make."""
    sector_bytes: int = 512
    """Sector size of the device below the file system: 4096 as on large disks."""


DEFAULT_STORAGES: Sequence[StorageSpec] = (StorageSpec("san1", "ext4"), StorageSpec("san2", "xfs"))


def need_loop_mounts() -> None:
    """Raise LabNeeds if this process may not mount, or this kernel has no loop devices."""
    if os.geteuid() != 0:
        raise LabNeeds(missing="root, to mount storages and make namespaces", cure="run it with sudo")
    if not Path("/dev/loop-control").exists():
        raise LabNeeds(missing="loop devices", cure="modprobe loop")


def share(at: Path) -> None:
    """Make what is mounted below the lab's folder from now on visible inside the lab too, at the same path."""
    run("mount", "--bind", at, at)
    run("mount", "--make-shared", at)


def make_storage(at: Path, spec: StorageSpec) -> Path:
    """Make a file system in a sparse image file and mount it at `at`/NAME. Return that folder."""
    if spec.fs not in FORMAT:
        raise LabPlaceUnfit(at=at / spec.name, reason=f"{spec.fs} is not one of {', '.join(FORMAT)}")
    image, place = at / "images" / f"{spec.name}.img", at / spec.name
    if place.exists():
        raise LabPlaceUnfit(at=place, reason="something of that name is there")
    image.parent.mkdir(exist_ok=True)
    with image.open("xb") as file:
        file.truncate(spec.size_mib << 20)
    if spec.fs == "exfat":
        need_exfat()
    place.mkdir()
    device = run("losetup", "--find", "--show", "--sector-size", str(spec.sector_bytes), image).strip()
    try:
        run(*FORMAT[spec.fs], device)
        run(*MOUNT.get(spec.fs, ("mount",)), device, place)
        if spec.direct:
            run("losetup", "--direct-io=on", device)
    finally:
        run("losetup", "--detach", device)  # once it is unmounted: as `mount -o loop` has it
    return place


def need_exfat() -> None:
    """Raise LabNeeds if this machine cannot make or mount exFAT, a file system without hard links."""
    for name in ("mkfs.exfat", "mount.exfat-fuse"):
        if shutil.which(name) is None:
            raise LabNeeds(missing=name, cure="apt install exfatprogs exfat-fuse")


def wear_out(at: Path, name: str, left_mib: int) -> None:
    """Make a storage fail: read-only, with EIO for all reads after the first `left_mib` MiB."""
    run("mount", "-o", "remount,ro", at / name)
    os.truncate(at / "images" / f"{name}.img", left_mib << 20)


def mounts_below(at: Path) -> list[Path]:
    """Return all mount points at or below `at`, deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(_unescaped(line.split()[4])) for line in lines]
    return sorted((p for p in points if p.is_relative_to(at)), key=lambda p: len(p.parts), reverse=True)


def remove(at: Path) -> None:
    """Unmount everything at and below `at`, then remove the folder; files on a mount are never removed."""
    for _ in range(8):  # each pass takes away one layer; a lab mounts two at most on one place
        for point in mounts_below(at):
            _unmount(point)
    if left := mounts_below(at):
        raise LabPlaceUnfit(at=at, reason=f"{left[0]} stays mounted")
    shutil.rmtree(at)


def _unmount(point: Path) -> None:
    try:
        run("umount", point)
    except LabProgramFailed:
        run("umount", "--lazy", point)  # someone's shell stands in it


def _unescaped(field: str) -> str:
    """Return a path from mountinfo with its octal escapes for space, tab, newline and backslash replaced."""
    return field.encode().decode("unicode_escape").encode("latin-1").decode()
