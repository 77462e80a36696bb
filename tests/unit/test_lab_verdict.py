"""The verdict can fail: on a write taken away, an older one put back, one torn or one misplaced."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from vmferry.lab.guests.console import Ack, Erasure
from vmferry.lab.guests.disks import DiskSpec
from vmferry.lab.guests.verdict import BLOCK, HEAD, MAGIC, Region, judge, read_region

FIRST, BLOCKS = 256, 64


def stamp(number: int, place: int, disk: str = "vda") -> bytes:
    """One block as the guest writes it."""
    head = HEAD.pack(MAGIC, number, place, 0, disk.encode(), 0, 1, 0)
    body = head + bytes([number % 251]) * (BLOCK - 4 - len(head))
    return body + zlib.crc32(body).to_bytes(4, "little")


def region(stamps: dict[int, bytes]) -> dict[str, Region]:
    """A region of vda with these blocks, by place, and nothing else."""
    blocks = [stamps.get(place, bytes(BLOCK)) for place in range(FIRST, FIRST + BLOCKS)]
    return {"vda": Region("vda", FIRST, b"".join(blocks))}


ACKS = [Ack("vda", n, FIRST + n % 7, n * 1000, 1) for n in range(1, 20)]
WRITTEN = {ack.place: stamp(ack.number, ack.place) for ack in ACKS}  # the newest of each place remains


def test_nothing_is_lost_when_the_newest_write_of_each_place_is_there() -> None:
    verdict = judge(ACKS, region(WRITTEN))
    assert (verdict.acknowledged, verdict.lost, verdict.torn, verdict.clean) == (19, 0, 0, True)


def test_one_acknowledged_write_taken_away_is_one_lost() -> None:
    verdict = judge(ACKS, region({place: block for place, block in WRITTEN.items() if place != ACKS[-1].place}))
    assert (verdict.lost, verdict.torn, verdict.clean) == (1, 0, False)
    assert "no stamp, 19 was acknowledged" in verdict.examples[0]


def test_an_older_write_in_the_place_of_a_newer_one_is_lost() -> None:
    older = {ACKS[-1].place: stamp(ACKS[-1].number - 7, ACKS[-1].place)}
    assert judge(ACKS, region(WRITTEN | older)).lost == 1


def test_a_newer_write_that_was_not_acknowledged_is_no_loss() -> None:
    newer = {ACKS[-1].place: stamp(99, ACKS[-1].place)}
    assert judge(ACKS, region(WRITTEN | newer)).clean


def test_a_block_with_one_bit_changed_is_torn() -> None:
    block = bytearray(WRITTEN[FIRST])
    block[2000] ^= 1
    verdict = judge(ACKS, region(WRITTEN | {FIRST: bytes(block)}))
    assert (verdict.lost, verdict.torn) == (0, 1)


@pytest.mark.parametrize("stranger", [stamp(99, FIRST + 1), stamp(99, FIRST, "vdb")])
def test_a_whole_block_of_another_place_or_disk_is_a_loss(stranger: bytes) -> None:
    assert judge(ACKS, region(WRITTEN | {FIRST: stranger})).lost == 1


def test_each_block_of_a_larger_write_is_looked_for() -> None:
    blocks = {FIRST + i: stamp(5, FIRST + i) for i in range(4)}
    acks = [Ack("vda", 5, FIRST, 1, 4)]
    assert judge(acks, region(blocks)).clean
    blocks.pop(FIRST + 3)
    assert judge(acks, region(blocks)).lost == 1


def erased(number: int, *, durable: bool) -> Erasure:
    return Erasure("vda", number, FIRST, 1, durable)


@pytest.mark.parametrize(
    ("acts", "block", "lost"),
    [
        ([erased(9, durable=True)], None, 0),
        ([erased(9, durable=True)], stamp(7, FIRST), 1),  # what was zeroed came back
        ([erased(9, durable=True)], stamp(10, FIRST), 0),  # written since, and not acknowledged
        ([erased(9, durable=False)], None, 0),  # discarded, or about to be zeroed
        ([erased(9, durable=False)], stamp(7, FIRST), 0),
        ([erased(9, durable=False)], stamp(6, FIRST), 1),  # an older one than was acknowledged
        ([erased(6, durable=True)], None, 1),  # written after it was zeroed
        ([erased(6, durable=False)], None, 1),
    ],
)
def test_a_block_that_was_erased_has_zeros_or_what_came_after(
    acts: list[Erasure], block: bytes | None, lost: int
) -> None:
    found = judge([Ack("vda", 7, FIRST, 1, 1)], region({FIRST: block} if block else {}), acts)
    assert (found.lost, found.torn) == (lost, 0), found


def test_a_disk_or_place_that_was_not_read_counts_as_lost() -> None:
    acks = [Ack("vdb", 1, FIRST, 1, 1), Ack("vda", 1, FIRST + BLOCKS, 1, 1)]
    assert judge(acks, region({})).lost == 2


def test_a_region_is_read_from_an_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(2 << 20) + stamp(7, 512) + bytes((2 << 20) - BLOCK))
    found = read_region(DiskSpec("vda", format="raw", size_mib=4, region_mib=2), image)
    assert (len(found.content), found.number_at(512), found.number_at(513)) == (2 << 20, 7, 0)
