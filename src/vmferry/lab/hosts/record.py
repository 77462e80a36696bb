"""The records that a lab writes about itself before it makes anything, so that any process can take it down."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class LabRecord:
    """The record of one node of a lab: its id (also libvirt's host uuid), its keeper's process id, its storages.

    The rest is empty for a host that stands alone: its name, the folder of the lab that it belongs to, its address
    there, and the storages that every host of the lab sees at the same path.
    """

    lab_id: str
    keeper_pid: int | None = None
    storages: tuple[str, ...] = ()
    name: str = ""
    within: str = ""
    address: str = ""
    shared: tuple[str, ...] = ()

    def with_(self, **changes: object) -> Self:
        """Return this record with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class HostsRecord:
    """The record of a lab of several hosts: its id, the names of its hosts and of the storages that all of them see."""

    lab_id: str
    hosts: tuple[str, ...]
    shared: tuple[str, ...]


def read_record(at: Path) -> LabRecord | None:
    """Return the record of the host at `at`; None when there is none."""
    fields = _read(at / "lab.json")
    return None if fields is None else LabRecord(**fields)  # type: ignore[arg-type]


def write_record(at: Path, record: LabRecord) -> None:
    """Replace the record of the host at `at`; a reader sees the old one or the new one."""
    _write(at / "lab.json", asdict(record))


def read_hosts(at: Path) -> HostsRecord | None:
    """Return the record of the lab of several hosts at `at`; None when there is none."""
    fields = _read(at / "hosts.json")
    return None if fields is None else HostsRecord(**fields)  # type: ignore[arg-type]


def write_hosts(at: Path, record: HostsRecord) -> None:
    """Replace the record of the lab of several hosts at `at`; a reader sees the old one or the new one."""
    _write(at / "hosts.json", asdict(record))


def _read(file: Path) -> dict[str, object] | None:
    try:
        fields = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _write(file: Path, fields: dict[str, object]) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(fields, indent=2))
    new.replace(file)
