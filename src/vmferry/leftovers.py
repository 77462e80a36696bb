"""Files that jobs left behind: every one carries its job's id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vmferry.hosts.protocol import Hosts
from vmferry.model import ACTIVE, FINAL, Plan, Token
from vmferry.store import Store

TAG = re.compile(r"vmferry-([a-z0-9]{8})")


class Leftovers:
    """What lies in the folders that plans name, and no active job needs."""

    def __init__(self, store: Store, hosts: Hosts) -> None:
        self._store = store
        self._hosts = hosts

    def list(self, connect: str, folders: Sequence[Path]) -> Sequence[Path]:
        active = {row.id for row in self._store.rows(ACTIVE)}
        return [path for path in self._tagged(connect, folders) if _job_in(path) not in active]

    def reap(self, connect: str, folders: Sequence[Path]) -> Sequence[Path]:
        """Those of jobs that this state folder knows: another one's job may be active."""
        ended = {row.id: row for row in self._store.rows(FINAL)}
        gone = [path for path in self._tagged(connect, folders) if _job_in(path) in ended]
        for path in gone:
            row = ended[_job_in(path)]
            self._hosts.open(connect, Token(row.id, row.epoch)).remove(path)
        return gone

    def _tagged(self, connect: str, folders: Sequence[Path]) -> Sequence[Path]:
        places = set(folders)
        for row in self._store.rows():
            if row.connect == connect:
                places |= _folders(row.plan)
        return self._hosts.open(connect).leftovers(sorted(places))


def _folders(plan: Plan) -> set[Path]:
    """Where a job of this plan makes files."""
    files = [image.source for image in plan.images if not image.from_volume]
    files += [image.destination for image in plan.images if not image.to_volume]
    folders = {path.parent for path in files if isinstance(path, Path)}
    return folders | {path.parent for disk in plan.disks for path in (disk.overlays, disk.overlay_copies)}


def _job_in(path: Path) -> str:
    found = TAG.search(path.name)
    return found.group(1) if found else ""
