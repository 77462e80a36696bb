"""What a job claims while it is active: slots of its hosts and storages, and room at its destinations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vmferry.hosts.interface import Host, filesystem_of
from vmferry.model import SAVES, Plan, Url, Where

HOST_SLOTS = 10
STORAGE_SLOTS = 10
HOST = "host "
"""How a host's slot begins; what follows is its URI."""


def slots_of(plan: Plan, host: Host, there: Host) -> tuple[str, ...]:
    """Return the slots of a plan's hosts and of every storage that it reads or writes, sorted."""
    storages = {_of_image(image.source, host, volume=image.from_volume) for image in plan.images}
    storages |= {_of_image(image.destination, there, volume=image.to_volume) for image in plan.images}
    hosts = {host_slot(name) for name in (plan.connect, plan.to) if name}
    return tuple(sorted(hosts | storages))


def host_slot(connect: str) -> str:
    return f"{HOST}{connect}"


def storage_slot(where: Where, host: Host) -> str:
    """Return the slot of the storage that a folder or volume lies on, as it is mounted now."""
    if isinstance(where, Url) or not (folder := host.folder(where)).exists:
        return f"storage {where}"
    return f"storage {filesystem_of(folder, host)}"


def _of_image(where: Where, host: Host, *, volume: bool) -> str:
    return f"storage {where}" if volume or isinstance(where, Url) else storage_slot(where.parent, host)


def jobs_at_once(slot: str) -> int:
    """Return how many jobs may hold the same slot."""
    return HOST_SLOTS if slot.startswith(HOST) else STORAGE_SLOTS


def room_of(plan: Plan, there: Host) -> Mapping[str, int]:
    """Return, by file system, the bytes that a plan's images and its saved state, beside the first disk, take."""
    room: Counter[str] = Counter()
    for image in plan.images:
        if isinstance(image.destination, Path) and not image.to_volume:
            room[filesystem_of(there.folder(image.destination.parent), there)] += image.data_bytes
    if plan.technology in SAVES:
        room[filesystem_of(there.folder(plan.disks[0].overlay_copies.parent), there)] += plan.memory_bytes
    return room
