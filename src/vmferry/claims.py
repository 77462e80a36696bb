"""What a job claims while it is active: slots of its host and storages, and room at its destinations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vmferry.hosts.protocol import Host
from vmferry.model import Plan, Technology

HOST_SLOTS = 10
STORAGE_SLOTS = 10


def slots_of(plan: Plan, host: Host) -> tuple[str, ...]:
    """Its host and every storage that it reads or writes, sorted."""
    folders = {path.parent for image in plan.images for path in (image.source, image.destination)}
    return tuple(sorted({f"host {plan.connect}"} | {f"storage {host.folder(f).filesystem}" for f in folders}))


def jobs_at_once(slot: str) -> int:
    """How many jobs may hold the same slot."""
    return HOST_SLOTS if slot.startswith("host ") else STORAGE_SLOTS


def room_of(plan: Plan, host: Host) -> Mapping[str, int]:
    """Bytes by file system: its images, and the saved state beside the first disk."""
    room: Counter[str] = Counter()
    for image in plan.images:
        room[host.folder(image.destination.parent).filesystem] += image.data_bytes
    if plan.technology is Technology.QUICK:
        room[host.folder(plan.disks[0].active.destination.parent).filesystem] += plan.memory_bytes
    return room
