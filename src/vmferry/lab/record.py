"""What a lab writes down about itself, before it makes anything, so that any process can take it down."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class LabRecord:
    """One lab: its id (also libvirt's host uuid), its keeper, its storages."""

    lab_id: str
    keeper_pid: int | None = None
    storages: tuple[str, ...] = ()

    def with_(self, **changes: object) -> Self:
        """This record with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def read_record(at: Path) -> LabRecord | None:
    """The record of the lab at `at`; None when there is no lab."""
    try:
        fields = json.loads((at / "lab.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return LabRecord(**{**fields, "storages": tuple(fields["storages"])})


def write_record(at: Path, record: LabRecord) -> None:
    """Replace the record; a reader sees the old one or the new one."""
    new = at / "lab.json.new"
    new.write_text(json.dumps(asdict(record), indent=2))
    new.replace(at / "lab.json")
