"""Images through qemu-img. Its locks keep it off an image that a VM has open for writing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TypedDict

from vmferry.errors import DestinationFull, ImageToolFailed
from vmferry.model import Image

Info = TypedDict(
    "Info",
    {
        "filename": str,
        "format": str,
        "virtual-size": int,
        "actual-size": int,
        "backing-filename": str,
        "backing-filename-format": str,
        "full-backing-filename": str,
        "encrypted": bool,
        "format-specific": dict[str, dict[str, str]],
    },
    total=False,
)


def qemu_img(*arguments: str) -> str:
    """Run qemu-img. Raises ImageToolFailed with its last line, DestinationFull where that is the reason."""
    ended = subprocess.run(("qemu-img", *arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode == 0:
        return ended.stdout
    reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
    if "No space left" in ended.stderr:
        raise DestinationFull(path=arguments[-1])
    raise ImageToolFailed(tool=f"qemu-img {arguments[0]}", path=arguments[-1], reason=reason)


def chain(path: Path, format_: str) -> list[tuple[Image, Info]]:
    """The image and all below it, as the headers tell; the top one's format is given, never probed."""
    out = qemu_img("info", "-U", "--backing-chain", "--output=json", "-f", format_, str(path))
    return [(_image(info), info) for info in json.loads(out)]


def _image(info: Info) -> Image:
    return Image(
        path=Path(info["filename"]).absolute(),
        format=info["format"],
        virtual_bytes=info["virtual-size"],
        data_bytes=info.get("actual-size", 0),
        backing=info.get("backing-filename"),
        backing_format=info.get("backing-filename-format"),
        data_file=info.get("format-specific", {}).get("data", {}).get("data-file"),
    )


def make_overlay(path: Path, backing: Path, backing_format: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-F", backing_format, "-b", str(backing), str(path))


def rebase(path: Path, backing: str, backing_format: str) -> None:
    qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-F", backing_format, "-b", backing, str(path))


def commit(top: Path, base: Path) -> None:
    """Write what lies above `base` into it, leaving the overlays as they are (-b implies -d)."""
    qemu_img("commit", "-q", "-f", "qcow2", "-t", "none", "-b", str(base), str(top))
