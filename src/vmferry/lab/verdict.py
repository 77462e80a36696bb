"""The verdict on a guest's disks: is every write that was acknowledged there, and whole?

Reads the images, never writes them; the guest is off or paused, or the images are copies.
"""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmferry.lab.console import Ack
from vmferry.lab.disks import DiskSpec
from vmferry.lab.programs import run
from vmferry.lab.secrets import KEY, QEMU_IMG_KEY

BLOCK = 4096
MAGIC = b"VMFSTAMP"
HEAD = struct.Struct("<8sQQQ8sQII")  # as struct stamp in guest/stamp.c


@dataclass(frozen=True)
class Verdict:
    """Writes acknowledged, places whose newest acknowledged write is not there, blocks that are not whole.

    `second_writers` counts the signs that two copies of the guest ran at once.
    """

    acknowledged: int
    lost: int
    torn: int
    longest_pause_s: float = 0.0
    longest_stall_s: float = 0.0
    examples: tuple[str, ...] = ()
    second_writers: int = 0

    @property
    def clean(self) -> bool:
        return not self.lost and not self.torn and not self.second_writers


@dataclass(frozen=True)
class Region:
    """The guest's part of one disk: the disk's name, the place of the first block, and the bytes found there."""

    disk: str
    first: int
    content: bytes

    def number_at(self, place: int) -> int | None:
        """The number of the stamp at `place`: 0 when there is none for this place, None when it is not whole."""
        at = (place - self.first) * BLOCK
        block = self.content[at : at + BLOCK]
        magic, number, stamped_place, _, disk, *_ = HEAD.unpack_from(block)
        if magic != MAGIC:
            return 0
        if zlib.crc32(block[:-4]) != int.from_bytes(block[-4:], "little"):
            return None
        return number if (stamped_place, disk.rstrip(b"\0").decode()) == (place, self.disk) else 0


def judge(acks: Iterable[Ack], regions: Mapping[str, Region]) -> Verdict:
    """Hold all acknowledgements against the regions of the disks that were read."""
    acknowledged, newest = 0, dict[tuple[str, int], int]()
    for ack in acks:
        acknowledged += 1
        for place in range(ack.place, ack.place + ack.blocks):
            newest[ack.disk, place] = max(ack.number, newest.get((ack.disk, place), 0))
    lost, torn = [], []
    for region in regions.values():
        for place in range(region.first, region.first + len(region.content) // BLOCK):
            found, wanted = region.number_at(place), newest.pop((region.disk, place), 0)
            if found is None:
                torn.append(f"{region.disk} block {place} is torn")
            elif found < wanted:
                lost.append(f"{region.disk} block {place} has {found or 'no stamp'}, {wanted} was acknowledged")
    lost += [f"{disk} block {place} was not read" for disk, place in newest]
    return Verdict(acknowledged, len(lost), len(torn), examples=tuple((lost + torn)[:5]))


def read_region(disk: DiskSpec, image: Path | str) -> Region:
    """Read the guest's part of a disk through qemu-img, whatever the format and backing chain, locks ignored."""
    start_mib, length_mib = disk.region
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "region")
        # qemu-img counts from the beginning of the input, unlike dd.
        where = (f"bs={1 << 20}", f"skip={start_mib}", f"count={start_mib + length_mib}")
        key = QEMU_IMG_KEY if disk.encrypted else ()
        name = _with_key(image) if disk.encrypted else image
        run("qemu-img", "dd", "-U", *key, "-O", "raw", *where, f"if={name}", f"of={copy}")
        return Region(disk.target, start_mib * (1 << 20) // BLOCK, copy.read_bytes())


def _with_key(image: Path | str) -> str:
    """An encrypted qcow2 as qemu-img names one that it can decrypt."""
    options = {"driver": "qcow2", "encrypt": {"key-secret": KEY}, "file": {"driver": "file", "filename": str(image)}}
    return f"json:{json.dumps(options)}"
