"""The state of emulated TPMs, which lies in a folder of libvirt's own, by UUID."""

from __future__ import annotations

import shutil
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from vmferry import durable

FOLDER = Path("/var/lib/libvirt/swtpm")
_SUFFIXES = (".permall", ".volatilestate", ".savestate")


def folder(uuid: str) -> Path:
    """Return the folder of a VM's TPM. Raises ValueError for what is no UUID: a folder is removed by this name."""
    return FOLDER / str(UUID(uuid))


def read(uuid: str) -> dict[str, str]:
    """Return a VM's TPM state, file to content in base64, without its lock; empty if there is none.

    swtpm replaces the files whole, so it may run meanwhile.
    """
    place = folder(uuid)
    if not place.is_dir():
        return {}
    return {
        str(path.relative_to(place)): b64encode(path.read_bytes()).decode()
        for path in sorted(place.rglob("*"))
        if path.suffix in _SUFFIXES and path.is_file() and not path.is_symlink()
    }


def write(uuid: str, state: Mapping[str, str]) -> None:
    """Write a VM's TPM state over what is there; libvirt gives the files to swtpm's user when it starts the VM."""
    place = folder(uuid)
    for name, content in state.items():
        path = place / name
        if ".." in path.parts or not path.is_relative_to(place) or path.suffix not in _SUFFIXES:
            continue
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        durable.write(path, b64decode(content))


def remove(uuid: str) -> None:
    if folder(uuid).is_dir():
        shutil.rmtree(folder(uuid))
