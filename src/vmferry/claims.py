"""What a job claims while it is active: slots of its host and storages, and room at its destinations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vmferry.hosts.protocol import Host
from vmferry.model import Plan, Technology, Url, Where

HOST_SLOTS = 10
STORAGE_SLOTS = 10
HOST = "host "
"""How a host's slot begins; what follows is its URI."""


def slots_of(plan: Plan, host: Host) -> tuple[str, ...]:
    """Its host and every storage that it reads or writes, sorted."""
    ends = [(i.source, i.from_volume) for i in plan.images] + [(i.destination, i.to_volume) for i in plan.images]
    storages = {_of_image(where, host, volume=volume) for where, volume in ends}
    return tuple(sorted({host_slot(plan.connect)} | storages))


def host_slot(connect: str) -> str:
    return f"{HOST}{connect}"


def storage_slot(where: Where, host: Host) -> str:
    """Of a folder or a volume, as it is mounted now."""
    if isinstance(where, Url) or not host.folder(where).exists:
        return f"storage {where}"
    return f"storage {host.folder(where).filesystem}"


def _of_image(where: Where, host: Host, *, volume: bool) -> str:
    return f"storage {where}" if volume or isinstance(where, Url) else storage_slot(where.parent, host)


def jobs_at_once(slot: str) -> int:
    """How many jobs may hold the same slot."""
    return HOST_SLOTS if slot.startswith(HOST) else STORAGE_SLOTS


def room_of(plan: Plan, host: Host) -> Mapping[str, int]:
    """Bytes by file system: its images, and the saved state beside the first disk."""
    room: Counter[str] = Counter()
    for image in plan.images:
        if isinstance(image.destination, Path) and not image.to_volume:
            room[host.folder(image.destination.parent).filesystem] += image.data_bytes
    if plan.technology is Technology.QUICK:
        room[host.folder(plan.disks[0].overlay_copies.parent).filesystem] += plan.memory_bytes
    return room
