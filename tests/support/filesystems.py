"""File systems in files, and where a file's data lies in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmferry.transfer.endpoints.raw_file import RawFile
from vmferry.transfer.ranges import Range

MIB = 1024 * 1024


@contextmanager
def mounted(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """A new file system of that kind in a sparse image below folder; skips where that is impossible."""
    if os.getuid() != 0 or not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"needs root and mkfs.{kind} to mount a {kind} of its own")
    image, place = folder / f"{kind}.image", folder / kind
    place.mkdir()
    image.touch()
    os.truncate(image, size)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a loop device here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        image.unlink()


def place(request: pytest.FixtureRequest, name: str) -> Path:
    found = request.getfixturevalue(name)
    assert isinstance(found, Path)
    return found


def write_at(path: Path, content: bytes, offset: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640)
    os.pwrite(fd, content, offset)
    os.fsync(fd)
    os.close(fd)


def extents(path: Path) -> list[Range]:
    raw = RawFile(path, os.O_RDONLY)
    found = list(raw.extents(Range(0, path.stat().st_size), path.stat().st_size))
    raw.close()
    return found


@contextmanager
def formatted(image: Path, make: tuple[str, ...], mount: tuple[str, ...], sector: int = 512) -> Iterator[Path]:
    """A file system that these commands make and mount, on a loop device with sectors of this size."""
    with image.open("xb") as file:
        file.truncate(128 << 20)
    device = _run("losetup", "--show", "-f", "-b", str(sector), image).strip()
    place = image.with_suffix(".at")
    place.mkdir()
    try:
        _run(*make, device)
        _run(*mount, device, place)
        try:
            yield place
        finally:
            _run("umount", place)
    finally:
        _run("losetup", "-d", device)


@contextmanager
def exfat_in(folder: Path) -> Iterator[Path]:
    """A file system without hard links; skips where that is impossible."""
    if not (shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse") and os.geteuid() == 0):
        pytest.skip("needs root, exfatprogs and exfat-fuse")
    with formatted(folder / "exfat", ("mkfs.exfat",), ("mount.exfat-fuse",)) as place:
        yield place


def _run(*words: str | Path) -> str:
    return subprocess.run(tuple(map(str, words)), check=True, capture_output=True, text=True).stdout
