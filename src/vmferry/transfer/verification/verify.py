"""Verifying: read again what a seal names, past the page cache, and check it against the seal's hashes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmferry.errors import BadReceipt, SourceChanged, SourceInUse, SourceUnreadable
from vmferry.model.seals import Seal
from vmferry.qemu.locks import guard_reading
from vmferry.qemu.places import Place, Scheme
from vmferry.transfer.contract import Watch
from vmferry.transfer.endpoints.file import reading
from vmferry.transfer.endpoints.source import opened_alone
from vmferry.transfer.engine.copy_loop import Reader, scan
from vmferry.transfer.engine.hashing import root_hash
from vmferry.transfer.engine.progress import ProgressCounter
from vmferry.transfer.engine.streams import Lane, Streams
from vmferry.transfer.ranges import Chunk, Range, by_chunk, chunk_range, clip, total
from vmferry.transfer.verification.seals import Written, mark_of, stamp, unpack_marks, written

_UNREADABLE = b"unreadable"  # no digest, and no mark either


class VerifyOutcome(StrEnum):
    SAME = "same"
    """Every byte is what the receipt says."""
    DIFFERS = "differs"
    """It is not, and nothing tells that it was written since on purpose."""
    WRITTEN = "written"
    """It was written since, or is being written: its hashes would say nothing."""


@dataclass(frozen=True, slots=True)
class DiskVerdict:
    at: str
    outcome: VerifyOutcome
    why: str = ""
    """What is uncertain, or how it is known that it was written."""
    wrong: tuple[Range, ...] = ()
    """The chunks that differ, by offset; empty if only the root hash does."""
    unreadable: tuple[Range, ...] = ()
    compared_bytes: int = 0


def verify(seal: Seal, watch: Watch, tls: Path | None = None, streams: int = 4) -> DiskVerdict:
    """Read all that the seal names, unless it was written since, and return the verdict.

    SAME is the verdict only on what was read from the storage and has the root hash. Raises BadReceipt, BadPlace,
    ExportFailed, SourceUnreadable if it cannot be opened, and what watch.check() raises.
    """
    place, marks = _place(seal, tls), unpack_marks(seal)
    try:
        now = stamp(place)
        known, why = written(seal, now)
        if known is Written.YES:
            return DiskVerdict(seal.at, VerifyOutcome.WRITTEN, why)
        _refuse_open(place)
        found = _read(seal, place, watch, streams)
        later = stamp(place)
    except FileNotFoundError:
        return DiskVerdict(seal.at, VerifyOutcome.WRITTEN, "there is no such file any more")
    except (SourceInUse, SourceChanged):
        return DiskVerdict(seal.at, VerifyOutcome.WRITTEN, "a VM or another program has it open for writing")
    except OSError as error:
        raise SourceUnreadable(path=seal.at, offset=0, reason=error.strerror or str(error)) from error
    if later != now:
        return DiskVerdict(seal.at, VerifyOutcome.WRITTEN, "it was written while it was read")
    return _judged(seal, marks, found, why)


@dataclass(frozen=True, slots=True)
class _Found:
    size: int
    data_bytes: int
    digests: dict[int, bytes | None]


def _place(seal: Seal, tls: Path | None) -> Place:
    place = Place(seal.at, "raw" if seal.hashed == "bytes" else seal.format)
    if seal.hashed not in ("bytes", "content") or (seal.hashed == "bytes" and place.scheme is not Scheme.PATH):
        raise BadReceipt(receipt=seal.at, reason="it does not say what was hashed")
    return Place(place.at, place.format, tls) if tls and place.encrypted else place


def _refuse_open(place: Place) -> None:
    """Raise SourceInUse if a VM has the file open for writing, by QEMU's lock. Raises OSError."""
    if place.scheme is not Scheme.PATH:
        return
    fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with reading(place.at):
            if not guard_reading(fd):
                raise SourceInUse(path=place.at)
    finally:
        os.close(fd)


def _read(seal: Seal, place: Place, watch: Watch, streams: int) -> _Found:
    """Hash each chunk of the place; of a file or device, chunks that cannot be read are marked so."""
    with opened_alone(place, streams) as of:
        size = min(seal.size, of.source.size)
        data = list(clip(of.source.extents(Range(0, size)), Range(0, size)))
        digests: dict[int, bytes | None] = {}

        def hash_one(chunk: Chunk, lane: Lane) -> None:
            before = lane.moved
            try:
                digests[chunk.index] = scan(Reader(of.source.read, size), chunk, lane)
            except SourceUnreadable:
                if place.scheme is not Scheme.PATH:
                    raise  # a link that is down says nothing of the disk
                digests[chunk.index] = _UNREADABLE
                lane.settle(before + total(chunk.data))

        Streams(watch, ProgressCounter(total(data), time.monotonic), streams).run(by_chunk(data), hash_one)
        of.confirm()
    return _Found(of.source.size, total(data), digests)


def _judged(seal: Seal, marks: list[bytes], found: _Found, why: str) -> DiskVerdict:
    """Compare what was read with the seal. Return the verdict, with the ranges that differ or are unreadable. Pure."""
    if found.size < seal.size:
        return DiskVerdict(seal.at, VerifyOutcome.WRITTEN, f"it has {found.size} bytes, not {seal.size}")
    unreadable = [index for index, digest in found.digests.items() if digest == _UNREADABLE]
    if not unreadable and root_hash(seal.size, found.digests) == seal.root_hash:
        return DiskVerdict(seal.at, VerifyOutcome.SAME, why, compared_bytes=found.data_bytes)
    broken = set(unreadable)
    wrong = [
        index for index, mark in enumerate(marks) if mark_of(found.digests.get(index)) != mark and index not in broken
    ]
    return DiskVerdict(
        seal.at,
        VerifyOutcome.DIFFERS,
        why,
        tuple(chunk_range(index, seal.size) for index in wrong),
        tuple(chunk_range(index, seal.size) for index in sorted(unreadable)),
        found.data_bytes,
    )
