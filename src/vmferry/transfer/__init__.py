"""The background transfer service: what BITS does for files, for disks, on a frozen base."""

from vmferry.transfer.service import (
    CHUNK,
    Compared,
    Copied,
    Place,
    Throttle,
    Transfer,
    Unwatched,
    Watch,
    Where,
    compare,
    copy,
    drop,
    forget,
    root_hash_of,
    unchanged,
)

__all__ = [
    "CHUNK",
    "Compared",
    "Copied",
    "Place",
    "Throttle",
    "Transfer",
    "Unwatched",
    "Watch",
    "Where",
    "compare",
    "copy",
    "drop",
    "forget",
    "root_hash_of",
    "unchanged",
]
