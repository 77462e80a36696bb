"""How long a guest will stand still, and how long a move takes: pure arithmetic on measured figures."""

from __future__ import annotations

from vmferry.model import MIRRORS, SAVES, Technology

# Measured on QEMU 7.2 and libvirt 9.0 (make bench prints them again for the machine at hand).
LIVE_FIXED_S = 0.05
"""Suspend, and resume, with nothing to pivot."""
LIVE_PER_DISK_S = 0.04
"""One pivot while the guest stands."""
QUICK_FIXED_S = 0.5
"""QEMU's end and start, without memory and disks."""
RESTORE_BYTES_S = 0.7e9
"""Rate at which memory is loaded from the page cache: 0.5e9 to 0.95e9 seen."""
SAVE_BYTES_S = 0.35e9
"""Rate at which memory is written with the guest standing, where it cannot be written before: 0.25e9 to 0.8e9 seen."""
DEFAULT_RATE_BYTES_S = 250e6
"""Assumed until a copy has been measured."""
MIGRATED_S = 0.65
"""From the guest's stop until it runs at another host, by libvirt's migration: QEMU's own 0.2, its end at the
source, and the word to run. 0.63 seen on two quiet cores."""
CROSSING_FIXED_S = 0.3
"""Serving, connecting and naming what a saved guest needs at another host."""
CARRY_BYTES_S = 400e6
"""Rate at which a saved state goes over TLS, assumed until a copy has been measured: 380e6 to 450e6 seen."""


def pause_s(
    technology: Technology,
    *,
    remaining_bytes: int,
    rate_bytes_s: float,
    memory_bytes: int,
    disks: int,
    precopy: bool = True,
    carry_bytes_s: float = CARRY_BYTES_S,
) -> float:
    """Seconds that the guest will stand still if it is cut over now; `memory_bytes`: those that are in use."""
    if technology is Technology.LIVE_RELOCATION:
        return MIGRATED_S
    if technology in MIRRORS:
        return LIVE_FIXED_S + LIVE_PER_DISK_S * disks
    if technology not in SAVES:
        return 0.0
    # The last overlay is read, written and read back.
    saving_s = 0.0 if precopy else memory_bytes / SAVE_BYTES_S
    if technology is Technology.QUICK_RELOCATION:  # the state is copied, and read back to be compared
        saving_s += CROSSING_FIXED_S + memory_bytes / max(carry_bytes_s, 1.0) + memory_bytes / RESTORE_BYTES_S
    return QUICK_FIXED_S + saving_s + memory_bytes / RESTORE_BYTES_S + 2 * remaining_bytes / max(rate_bytes_s, 1.0)


def move_s(data_bytes: int, *, limit_bytes_s: int | None, memory_bytes: int = 0) -> float:
    """Seconds until the job is done, copy and comparison."""
    rate = min(DEFAULT_RATE_BYTES_S, limit_bytes_s or DEFAULT_RATE_BYTES_S)
    return 2 * data_bytes / rate + memory_bytes / DEFAULT_RATE_BYTES_S
