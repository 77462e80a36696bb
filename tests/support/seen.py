"""What the tests of this folder look at: disks, definitions and folders, as an operator would."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for

TWO_DISKS = (
    DiskSpec("vda", format="qcow2", data_mib=24, internal_snapshot="before"),
    DiskSpec("vdb", format="raw", size_mib=128, data_mib=16),
)
HARD = GuestSpec("writer", disks=TWO_DISKS, rate=0)
"""A guest that writes as hard as it can to a qcow2 with an internal snapshot and a raw disk."""


ERASER = replace(HARD, name="eraser", disks=tuple(replace(disk, discard=True) for disk in TWO_DISKS), erase_one_in=4)
"""The same that zeroes and discards blocks as hard."""


def long(*values: object) -> object:
    """Values of a parameter that `make long` tries, not `make test`."""
    return pytest.param(*values, marks=pytest.mark.long)


def images(domain: libvirt.virDomain, *, live: bool = True) -> dict[str, Path]:
    """Active image by disk target: of the running VM, or of its persistent definition."""
    flags = 0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE
    root = etree.fromstring(domain.XMLDesc(flags))
    found = {}
    for disk in root.iterfind("./devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None:
            found[target.get("dev", "")] = Path(source.get("file", ""))
    return found


def power_off(guest: LabGuest, domain: libvirt.virDomain) -> None:
    guest.stop_writing()  # or its kernel may refuse a write while it shuts the disks down
    guest.command("poweroff")
    wait_for(lambda: not domain.isActive(), f"{guest.name} to power off", 60)


def untouched(image: Path, format_: str, disk: DiskSpec) -> str:
    """A hash of the part of a disk that the guest does not write, as a guest would read it."""
    return _read(image, format_, disk.region[0], "")


def of_snapshot(image: Path, name: str, disk: DiskSpec) -> str:
    """A hash of an internal snapshot's whole disk, as a guest would find it after going back to it."""
    return _read(image, "qcow2", disk.size_mib, name)


def whole(image: Path, format_: str, disk: DiskSpec) -> str:
    """A hash of a whole disk, as a guest that is started from this image would read it."""
    return _read(image, format_, disk.size_mib, "")


def _read(image: Path, format_: str, length_mib: int, snapshot: str) -> str:
    raw = image.with_name(f"{image.name}.test-read")
    choose = ("-l", f"snapshot.name={snapshot}") if snapshot else ()
    try:
        run("qemu-img", "convert", "-U", "-f", format_, "-O", "raw", *choose, str(image), str(raw))
        digest = hashlib.blake2b()
        with raw.open("rb") as file:
            for _ in range(length_mib):
                digest.update(file.read(1 << 20))
        return digest.hexdigest()
    finally:
        raw.unlink(missing_ok=True)


def check_image(image: Path) -> None:
    """qemu-img check finds nothing, not even a leaked cluster."""
    ended = subprocess.run(("qemu-img", "check", "-f", "qcow2", str(image)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def destination(lab: LabHost, guest: LabGuest, storage: str = "san2") -> Path:
    """The guest's folder on another storage."""
    folder = lab.storage(storage) / guest.name
    folder.mkdir(exist_ok=True)
    return folder


def nothing_of_ours(*folders: Path) -> None:
    """No file of a job is left in these folders."""
    left = [path for folder in folders if folder.exists() for path in folder.rglob("*vmferry-*")]
    assert not left, left
