"""Load of a host's running guests and storages, in totals that only grow: two readings give what was between."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DiskWaits:
    """Time that the writes to one disk of a running guest have taken since its QEMU began."""

    vm: str
    uuid: str
    target: str
    writes: int
    seconds: float
    """Of all these writes, and of the flushes that made them durable."""
    local: bool = True
    """It lies in a file or on a device of the host, so that the kernel counts who waits for it."""


@dataclass(frozen=True, slots=True)
class LinkCount:
    """Bytes that passed the network cards by which other hosts reach this one, since they came up."""

    sent_bytes: int
    received_bytes: int
    capacity_bytes_s: int
    """In each direction."""


@dataclass(frozen=True, slots=True)
class Load:
    at_s: float
    """When it was read, by the host's own clock that only goes forward."""
    disks: tuple[DiskWaits, ...] = ()
    stalled_s: float | None = None
    """Seconds in which some process waited for storage (PSI, "some" of /proc/pressure/io); None if not told."""
    link: LinkCount | None = None
    """None of a host that no other one reaches, or whose cards do not tell their speed: virtual ones often do not."""
