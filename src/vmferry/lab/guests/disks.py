"""The disks of a lab guest: their specification, and making them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vmferry.errors import LabPlaceUnfit, LabProgramFailed
from vmferry.lab.guests.secrets import KEY, QEMU_IMG_KEY
from vmferry.lab.programs import run

ENCRYPT = (*QEMU_IMG_KEY, "-o", f"encrypt.format=luks,encrypt.key-secret={KEY},encrypt.iter-time=10")
UNMEASURED = "Unable to get accurate CPU usage"
MIB, FILE_BLOCK = 1 << 20, 4096


@dataclass(frozen=True)
class DiskSpec:
    """A disk to make. The guest writes in `region_mib` MiB at its end; `data_mib` MiB at its start are random.

    With `data_of` these hold the files below that folder instead, each from a block of its own.
    """

    target: str = "vda"
    storage: str = "san1"
    format: str = "qcow2"
    size_mib: int = 256
    data_mib: int = 16
    data_of: Path | None = None
    region_mib: int = 32
    internal_snapshot: str | None = None
    backing: Path | None = None  # a golden image below it; then there is no random data of its own
    bus: str = "virtio"  # or "scsi", with targets sda, sdb, ...; "ide" with hda, hdb
    cache: str = "none"
    discard: bool = False  # what the guest discards is given back to the storage
    encrypted: bool = False  # qcow2 with LUKS; its secret is in the lab's libvirtd (lab/guests/secrets.py)
    lease: bool = False  # on a storage that all hosts see: shows a second copy of the guest, see guest/lease.c
    file_system: bool = False  # ext4, on the whole disk: the guest mounts it and takes notes there, stamps nothing

    @property
    def region(self) -> tuple[int, int]:
        """Start and length, in MiB, of the part that the guest writes to."""
        length = min(self.region_mib, self.size_mib // 2)
        return self.size_mib - length, length

    @property
    def file_name(self) -> str:
        return f"{self.target}.{'img' if self.format == 'raw' else self.format}"


def make_disk(spec: DiskSpec, image: Path) -> None:
    """Make the disk's image. Raises LabPlaceUnfit if the guest would overwrite its data, or there is too little."""
    if spec.file_system:
        make_file_system(spec, image)
        return
    if spec.lease:
        make_image(image, spec.format, spec.size_mib, 0)
        return
    if spec.data_mib > spec.region[0]:
        raise LabPlaceUnfit(at=image, reason=f"{spec.size_mib} MiB are too small for {spec.data_mib} MiB of data")
    if spec.backing:
        run("qemu-img", "create", "-q", "-f", spec.format, "-b", spec.backing, "-F", _format_of(spec.backing), image)
    else:
        how = ENCRYPT if spec.encrypted else ()
        make_image(image, spec.format, spec.size_mib, spec.data_mib, how, spec.data_of)
    if spec.internal_snapshot:
        run("qemu-img", "snapshot", "-c", spec.internal_snapshot, image)


def make_image(
    image: Path, format_: str, size_mib: int, data_mib: int, how: Sequence[str] = (), data_of: Path | None = None
) -> None:
    """Make an image whose first `data_mib` MiB hold data; the rest is not allocated. `how` is for qemu-img.

    The data is random, or that of the files in `data_of`. Raises LabPlaceUnfit when those hold less.
    """
    raw = image.with_suffix(".filling")
    with raw.open("xb") as file:
        for block in islice(_noise() if data_of is None else _of_files(data_of), data_mib):
            file.write(block)
        if file.tell() < data_mib * MIB:
            raise LabPlaceUnfit(at=image, reason=f"the files in {data_of} hold less than {data_mib} MiB")
        file.truncate(size_mib << 20)
    _become(raw, image, format_, how)


def _noise() -> Iterator[bytes]:
    while True:
        yield os.urandom(MIB)


def _of_files(folder: Path) -> Iterator[bytes]:
    """Yield the contents of a folder's files in pieces of 1 MiB, by path, each file padded to whole blocks."""
    kept = bytearray()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            while data := file.read(MIB):
                kept += data
                while len(kept) >= MIB:
                    yield bytes(kept[:MIB])
                    del kept[:MIB]
        kept += bytes(-len(kept) % FILE_BLOCK)


def make_file_system(spec: DiskSpec, image: Path) -> None:
    """Make an image that is one empty ext4 file system."""
    raw = image.with_suffix(".filling")
    with raw.open("xb") as file:
        file.truncate(spec.size_mib << 20)
    run("mkfs.ext4", "-q", "-F", raw)
    _become(raw, image, spec.format)


def _become(raw: Path, image: Path, format_: str, how: Sequence[str] = ()) -> None:
    if format_ == "raw":
        raw.replace(image)
        return
    _converted("qemu-img", "convert", "-f", "raw", "-O", format_, *how, raw, image)
    raw.unlink()


def _converted(*words: str | Path) -> None:
    """Run a command, up to three times if qemu-img cannot measure the CPU for a key: a busy one makes that fail."""
    for last in (False, False, True):
        try:
            run(*words)
            return
        except LabProgramFailed as failed:
            if last or UNMEASURED not in str(failed):
                raise


def _format_of(image: Path) -> str:
    return "raw" if image.suffix == ".img" else image.suffix.removeprefix(".")
