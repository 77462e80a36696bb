"""How long a guest will stand still, and how long a move takes: pure arithmetic on measured figures."""

from __future__ import annotations

from math import sqrt

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
STOPS_S = 0.3
"""QEMU stops a guest whose memory it writes once the rest takes no longer (its downtime-limit)."""
SAVE_LEAST_BYTES_S = 64e6
SAVE_LONGEST_S = 60.0
"""A running guest's memory is written no slower, and in no more time: the last overlay grows meanwhile."""
LAST_PASSES = 3
"""The last overlay is read and written, read back, and folded into the copy: 32 MiB took 0.15 s and 0.11 s, where a
copy of 0.5 GiB ran at 400e6."""
KEEPS_UP = 0.9
"""Part of what the way to another host carries at which memory is written, so that little is left to be carried."""
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
    growth_bytes_s: float = 0.0,
) -> float:
    """Seconds that the guest will stand still if it is cut over now.

    `remaining_bytes`: not yet copied. `memory_bytes`: those that are in use. `growth_bytes_s`: what the guest writes to
    its disks.
    """
    if technology is Technology.LIVE_RELOCATION:
        return MIGRATED_S
    if technology in MIRRORS:
        return LIVE_FIXED_S + LIVE_PER_DISK_S * disks
    if technology not in SAVES:
        return 0.0
    apart = technology is Technology.QUICK_RELOCATION
    carry = max(carry_bytes_s, 1.0)
    left = memory_bytes
    if precopy:
        pace = save_bytes_s(memory_bytes, growth_bytes_s, rate_bytes_s, carry if apart else None)
        left = min(memory_bytes, round(STOPS_S * pace))
        remaining_bytes += round(growth_bytes_s * memory_bytes / pace)
    saving_s = left / SAVE_BYTES_S
    if apart:  # carried while it is written, as far as the way allows; the rest is carried and read back
        behind = left if precopy else max(0.0, left - saving_s * carry)
        saving_s += CROSSING_FIXED_S + behind / carry + behind / RESTORE_BYTES_S
    last_s = LAST_PASSES * remaining_bytes / max(rate_bytes_s, 1.0)
    return QUICK_FIXED_S + saving_s + memory_bytes / RESTORE_BYTES_S + last_s


def save_bytes_s(
    memory_bytes: int, growth_bytes_s: float, rate_bytes_s: float, carry_bytes_s: float | None = None
) -> float:
    """The rate, in bytes a second, at which a running guest's memory is best written.

    The slower, the less of it is left when the guest stops, but the more the guest writes to its last overlay
    meanwhile, which is copied then: r * STOPS_S / SAVE_BYTES_S + LAST_PASSES * growth * memory / (r * rate) seconds in
    all, least at the rate given here. `carry_bytes_s`: what the way to another host carries, None for none.
    """
    least = max(SAVE_LEAST_BYTES_S, memory_bytes / SAVE_LONGEST_S)
    best = sqrt(LAST_PASSES * growth_bytes_s * memory_bytes * SAVE_BYTES_S / (STOPS_S * max(rate_bytes_s, 1.0)))
    pace = max(least, best)
    return max(1.0, pace if carry_bytes_s is None else min(pace, KEEPS_UP * carry_bytes_s))


def move_s(data_bytes: int, *, limit_bytes_s: int | None, memory_bytes: int = 0) -> float:
    """Seconds that a whole job takes: its data copied and compared under the limit, its memory written once."""
    rate = min(DEFAULT_RATE_BYTES_S, limit_bytes_s or DEFAULT_RATE_BYTES_S)
    return 2 * data_bytes / rate + memory_bytes / DEFAULT_RATE_BYTES_S
