"""What libvirt has written down about a VM, so that another host can write down the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vmferry.model.vms import Placed


@dataclass(frozen=True, slots=True)
class WrittenSnapshot:
    """A snapshot, or a checkpoint, as libvirt has it."""

    name: str
    xml: str
    current: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """All that libvirt has of a VM: name, UUID, devices, title and metadata in the XML, the rest beside it."""

    uuid: str
    xml: str
    """As it would start, with secrets."""
    snapshots: tuple[WrittenSnapshot, ...] = ()
    """Parents before their children."""
    checkpoints: tuple[WrittenSnapshot, ...] = ()
    autostart: bool = False
    tpm: Mapping[str, str] = field(default_factory=dict)
    """State of an emulated TPM: file in its folder to content, in base64. A few KiB."""

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def load(text: str) -> Definition:
        parsed = json.loads(text)
        for name in ("snapshots", "checkpoints"):
            parsed[name] = tuple(WrittenSnapshot(**each) for each in parsed[name])
        return Definition(**parsed)


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs in a definition at the destination."""

    disks: Mapping[str, Placed] = field(default_factory=dict)
    """By target; what is not named stays."""
    files: Mapping[Path, Path] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    """Networks, bridges and devices of interfaces, by name."""
    media: Mapping[str, Placed | None] = field(default_factory=dict)
    """What lies in a drive, by target, where nothing is copied: another image of that content, or nothing."""
    cold: bool = False
    """It comes switched off: its TPM's state is what was written down, no QEMU has brought it."""


@dataclass(frozen=True, slots=True)
class Lack:
    """A thing of the host's own that a definition names, and that is not there."""

    what: str
    """As "the kernel /boot/vmlinuz"."""
    cure: str
    drive: str = ""
    """The target of the drive that it lies in: the VM starts without it, once it is ejected."""
