"""The verdict on a guest's disks: is every acknowledged write there, and whole?

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

from vmferry.lab.guests.console import Ack, Erasure
from vmferry.lab.guests.disks import DiskSpec
from vmferry.lab.guests.secrets import KEY, QEMU_IMG_KEY
from vmferry.lab.programs import run

BLOCK = 4096
MAGIC = b"VMFSTAMP"
HEAD = struct.Struct("<8sQQQ8sQII")  # as struct stamp in guest/stamp.c


@dataclass(frozen=True)
class GuestVerdict:
    """Counts of acknowledged writes, of places without their newest acknowledged write, and of torn blocks.

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
    """The part of a disk that the guest writes: the disk's name, number of its first block, and the bytes read."""

    disk: str
    first: int
    content: bytes

    def is_zero(self, place: int) -> bool:
        at = (place - self.first) * BLOCK
        return not any(self.content[at : at + BLOCK])

    def number_at(self, place: int) -> int | None:
        """Return the stamp's number at block `place`: 0 if there is no stamp for this place, None if it is torn."""
        at = (place - self.first) * BLOCK
        block = self.content[at : at + BLOCK]
        magic, number, stamped_place, _, disk, *_ = HEAD.unpack_from(block)
        if magic != MAGIC:
            return 0
        if zlib.crc32(block[:-4]) != int.from_bytes(block[-4:], "little"):
            return None
        return number if (stamped_place, disk.rstrip(b"\0").decode()) == (place, self.disk) else 0


def judge(acks: Iterable[Ack], regions: Mapping[str, Region], erasures: Iterable[Erasure] = ()) -> GuestVerdict:
    """Compare all acknowledgements with the regions of the disks that were read. Return the verdict.

    A block that was zeroed has zeros, or a stamp that is newer. One that was to be erased since its newest stamp was
    acknowledged may have zeros.
    """
    acknowledged, newest = 0, dict[tuple[str, int], int]()
    zeroed, erased = dict[tuple[str, int], int](), dict[tuple[str, int], int]()
    for ack in acks:
        acknowledged += 1
        _note(newest, ack)
    for erasure in erasures:
        acknowledged += erasure.durable
        _note(zeroed if erasure.durable else erased, erasure)
    lost, torn = [], []
    for region in regions.values():
        for place in range(region.first, region.first + len(region.content) // BLOCK):
            at = (region.disk, place)
            found, wanted, zeros = region.number_at(place), newest.pop(at, 0), zeroed.get(at, 0)
            if found is None:
                torn.append(f"{region.disk} block {place} is torn")
            elif region.is_zero(place):
                if wanted > max(zeros, erased.get(at, 0)):
                    lost.append(f"{region.disk} block {place} has no stamp, {wanted} was acknowledged")
            elif found < max(wanted, zeros):
                what = f"{wanted} was acknowledged" if wanted > zeros else f"{zeros} zeroed it"
                lost.append(f"{region.disk} block {place} has {found or 'no stamp'}, {what}")
    lost += [f"{disk} block {place} was not read" for disk, place in newest]
    return GuestVerdict(acknowledged, len(lost), len(torn), examples=tuple((lost + torn)[:5]))


def _note(newest: dict[tuple[str, int], int], act: Ack | Erasure) -> None:
    for place in range(act.place, act.place + act.blocks):
        newest[act.disk, place] = max(act.number, newest.get((act.disk, place), 0))


def read_region(disk: DiskSpec, image: Path | str) -> Region:
    """Read the guest's part of a disk through qemu-img, for any format and backing chain, ignoring locks."""
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
    """Return the name by which qemu-img opens and decrypts an encrypted qcow2."""
    options = {"driver": "qcow2", "encrypt": {"key-secret": KEY}, "file": {"driver": "file", "filename": str(image)}}
    return f"json:{json.dumps(options)}"
