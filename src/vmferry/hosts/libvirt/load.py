"""What libvirt and the kernel tell of a host's load."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import libvirt

from vmferry.model import DiskWaits, Load

PRESSURE = Path("/proc/pressure/io")
"""Stalls on storage, see the kernel's Documentation/accounting/psi.rst; missing in a kernel built or booted without."""
_SOME = re.compile(r"^some .*\btotal=(\d+)", re.M)

_LISTED = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
"""Flags for all running VMs, without waiting: one that is being saved, say, reports little."""


def read_load(conn: libvirt.virConnect) -> Load:
    all_stats = conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_BLOCK, _LISTED)
    disks = [waits for domain, stats in all_stats for waits in _disks(domain, stats)]
    return Load(time.monotonic(), tuple(disks), stalled_s())


def stalled_s(pressure: Path = PRESSURE) -> float | None:
    """Return the seconds since boot in which some process waited for storage; None where the kernel does not tell."""
    try:
        found = _SOME.search(pressure.read_text())
    except OSError:
        return None
    return int(found[1]) / 1e6 if found else None


def _disks(domain: libvirt.virDomain, stats: Mapping[str, int | str]) -> Iterator[DiskWaits]:
    """Yield the VM's disks that report how long their writes took; those that cannot be written to report nothing."""
    for n in range(int(stats.get("block.count", 0))):
        writes, nanoseconds = stats.get(f"block.{n}.wr.reqs"), stats.get(f"block.{n}.wr.times")
        if writes is None or nanoseconds is None:
            continue
        yield DiskWaits(
            vm=domain.name(),
            uuid=domain.UUIDString(),
            target=str(stats[f"block.{n}.name"]),
            writes=int(writes),
            seconds=(int(nanoseconds) + int(stats.get(f"block.{n}.fl.times", 0))) / 1e9,
            local=f"block.{n}.path" in stats,
        )
