"""The background transfer service: what BITS does for files, for disks, on a frozen base."""

from vmferry.transfer.service import (
    CHUNK,
    AnyPlace,
    Compared,
    Copied,
    Place,
    Throttle,
    Transfer,
    Unwatched,
    Watch,
    compare,
    copy,
    drop,
    forget,
    root_hash_of,
    unchanged,
)

__all__ = [
    "CHUNK",
    "AnyPlace",
    "Compared",
    "Copied",
    "Place",
    "Throttle",
    "Transfer",
    "Unwatched",
    "Watch",
    "compare",
    "copy",
    "drop",
    "forget",
    "root_hash_of",
    "unchanged",
]
