"""Images through qemu-img: what one is made of, and a new empty one."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass

from vmferry.errors import DestinationFull, ImageToolFailed, SourceUnreadable, VmferryError
from vmferry.qemu.places import Place, Scheme

_CREATE_S = 120
_CARRIED = {
    "compat": "compat",
    "lazy-refcounts": "lazy_refcounts",
    "refcount-bits": "refcount_bits",
    "extended-l2": "extended_l2",
    "compression-type": "compression_type",
}
Options = tuple[tuple[str, str], ...]
_MISSING = re.compile(r"No such file|NFS3ERR_NOENT|NOENT", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What qemu-img tells of an image."""

    size: int
    files: tuple[str, ...]  # the image and all that it rests on, as QEMU names them
    options: Options = ()  # of a qcow2 image, as qemu-img create takes them
    data_file: str | None = None


def image_name(place: Place) -> str:
    """How QEMU's tools are given a place. An absolute path is never taken for a protocol."""
    return str(place.path.absolute()) if place.scheme is Scheme.PATH else place.at


def look(place: Place) -> ImageInfo:
    """Read the image's header and those below it. Raises SourceUnreadable."""
    told = _run("info", "--backing-chain", "--output=json", "-f", place.format, image_name(place))
    if isinstance(told, str):
        raise SourceUnreadable(path=place.shown, offset=0, reason=told)
    layers = json.loads(told.stdout)
    files = [name for layer in layers for name in (layer["filename"], _data_file(layer)) if name]
    return ImageInfo(layers[0]["virtual-size"], tuple(files), _options(layers[0]), _data_file(layers[0]))


def absent(place: Place) -> bool:
    """Is there no such file? For URLs whose files we make. Raises ImageToolFailed if that cannot be told."""
    told = _run("info", "-f", "raw", image_name(place))
    if not isinstance(told, str):
        return False
    if missing(told):
        return True
    raise ImageToolFailed(tool="qemu-img info", path=place.shown, reason=told)


def missing(reason: str) -> bool:
    """Is that why QEMU could not open it?"""
    return _MISSING.search(reason) is not None


def create(place: Place, size: int, options: Options = ()) -> None:
    """A new image in which all reads as zero, over whatever is there. Raises DestinationFull, ImageToolFailed."""
    told = _run("create", "-q", "-f", place.format, *_given(options), image_name(place), str(size))
    if isinstance(told, str):
        raise _failed("create", place, told)


def mend(place: Place) -> bool:
    """Free what an interrupted writer allocated in vain; False if the image is damaged beyond that."""
    return not isinstance(_run("check", "-q", "-r", "leaks", "-f", place.format, image_name(place)), str)


def required(place: Place, size: int, data_bytes: int, options: Options) -> int:
    """Bytes that an image with so much data takes. Raises ImageToolFailed."""
    told = _run("measure", "--output=json", "-O", place.format, *_given(options), "--size", str(size))
    if isinstance(told, str):
        raise _failed("measure", place, told)
    return int(json.loads(told.stdout)["required"]) + data_bytes


def _given(options: Options) -> list[str]:
    return ["-o", ",".join(f"{name}={value}" for name, value in options)] if options else []


def _failed(tool: str, place: Place, reason: str) -> VmferryError:
    if "No space left" in reason:
        return DestinationFull(path=place.shown)
    return ImageToolFailed(tool=f"qemu-img {tool}", path=place.shown, reason=reason)


def _run(*arguments: str) -> subprocess.CompletedProcess[str] | str:
    """The answer, or qemu-img's reason for none."""
    try:
        ended = subprocess.run(
            ("qemu-img", *arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_CREATE_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_CREATE_S} s"
    if ended.returncode == 0:
        return ended
    return (ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"])[-1].removeprefix("qemu-img: ")


def _specific(layer: dict[str, object]) -> dict[str, object]:
    """What qemu-img tells of this format only."""
    specific = layer.get("format-specific")
    data = specific.get("data") if isinstance(specific, dict) else None
    return data if isinstance(data, dict) else {}


def _options(layer: dict[str, object]) -> Options:
    """What a qcow2 image was made with, for another of its kind."""
    if layer.get("format") != "qcow2":
        return ()
    told = _specific(layer)
    # compat 0.10 has none of the others, and qemu-img create refuses them with it
    names = {"compat": "compat"} if told.get("compat") == "0.10" else _CARRIED
    found = [(ours, _word(told[theirs])) for theirs, ours in names.items() if theirs in told]
    return (("cluster_size", str(layer["cluster-size"])), *found)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _data_file(layer: dict[str, object]) -> str | None:
    found = _specific(layer).get("data-file")
    return str(found) if found else None
