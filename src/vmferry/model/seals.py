"""Seals of copies, by which it can be told later whether a destination still holds what was copied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class Seal:
    """A proved copy: its hashes, and what tells whether somebody has written there since.

    Times and inodes are text: numbers so large do not survive every reader of JSON.
    """

    at: str
    """A path or a URL, without a password."""
    format: str
    hashed: str
    """bytes: those of the file, whatever they mean; content: the disk in it, as a guest would see it."""
    size: int
    root_hash: str
    marks: str
    """The first 4 bytes of each chunk's digest, zeros for a chunk of zeros, in base64 of zlib: to find what differs."""
    identity: str
    """Inode and size of a file, name and size of a device; empty for a URL."""
    marker: str
    """Changes with every write: a file's mtime; a device's boot, sequence and sectors written; empty for a URL."""
    ctime: str = ""
    """Of a file; changes with its owner, mode and names as well. Empty: not judged."""


LATER = frozenset(
    {
        "from_host",
        "to_host",
        "lost",
        "left",
        "sources",
        "clock",
        "checkpoints_dropped",
        "next_start",
        "ejected",
        "stayed",
        "pause_allowed_s",
    }
)
"""Fields that earlier receipts lack: they count once they hold something."""


def checksum(receipt: Mapping[str, object]) -> str:
    """Return the BLAKE3 of all of a receipt but its checksum, the same for every way in which its JSON is written."""
    counted = {name: value for name, value in receipt.items() if value or name not in LATER}
    plain = _plain({name: value for name, value in counted.items() if name != "checksum"})
    return blake3(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(value: object) -> object:
    """Return the value with field names as people write them (`from`) and whole numbers as integers.

    jq writes 2.0 as 2.
    """
    if isinstance(value, Mapping):
        return {str(name).rstrip("_"): _plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
