"""What a file's header says that it needs: its backing image, its data file, the disks of a saved memory.

Read to find users of other files, and for nothing else: a guest can write such a header into its raw disk, and the
worst that it reaches is that a file is kept. Follows QEMU's docs/interop (qcow2, qed), VMware's "Virtual Disk Format"
and libvirt's qemu_saveimage.h. Only formats on which QEMU itself can stack images are known.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vmferry.model import Url, Where
from vmferry.qemu.names import canonical, where_named

LONGEST_NAME = 1023
"""Bytes of the longest name of a backing image, in qcow2."""
_HEAD = 4096
_MOST_EXTENSIONS = 2 << 20
"""Bytes in which qcow2's header extensions lie: in the first cluster, of 2 MiB at most."""
_MOST_XML = 16 << 20
_DATA_FILE = 0x44415441
_QCOW2, _QED, _VMDK = b"QFI\xfb", b"QED\0", b"KDMV"
_VMDK_TEXT = b"# Disk DescriptorFile"
_SAVED = (b"LibvirtQemudSave", b"LibvirtQemudPart")
_SAVED_HEADER = 92
_PARENT = re.compile(r'^\s*parentFileNameHint\s*=\s*"([^"]+)"', re.M)
_EXTENT = re.compile(r'^\s*(?:RW|RDONLY)\s+\d+\s+\w+\s+"([^"]+)"', re.M)
_PREFIX = re.compile(r"^(?:file|host_device|host_cdrom|raw|qcow2):(?!//)")


@dataclass(frozen=True, slots=True)
class Header:
    """What one file needs, as its header says."""

    names: tuple[Where, ...] = ()
    """Each place that a name in it may mean."""
    saved_xml: str = ""
    """The XML of the VM whose saved memory the file is; empty for other files."""


NOTHING = Header()


class BadHeader(ValueError):
    """A header that begins as that of an image and goes on as none."""


def read(path: Path) -> Header:
    """Return the header of a file. Raises OSError and BadHeader for what cannot be read: it may need anything."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _read(descriptor, path)
    except (struct.error, ValueError, OverflowError, RecursionError) as error:  # a guest may have written it
        raise BadHeader(f"the header of {path} makes no sense: {error}") from error
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path) -> Header:
    head = os.pread(descriptor, _HEAD, 0)
    if head.startswith(_SAVED):
        return Header(saved_xml=_saved_xml(descriptor, head))
    names = list(_names(descriptor, head))
    return Header(tuple(dict.fromkeys(where for name in names for where in meant(name, path))))


def _names(descriptor: int, head: bytes) -> Iterator[str]:
    if head.startswith(_QCOW2):
        yield from _of_qcow2(descriptor, head)
    elif head.startswith(_QED):
        yield from _of_qed(descriptor, head)
    elif head.startswith(_VMDK):
        at, length = (512 * sectors for sectors in struct.unpack_from("<QQ", head, 28))
        yield from _of_vmdk(os.pread(descriptor, min(length, 1 << 20), at))
    elif head.lstrip().startswith(_VMDK_TEXT):
        yield from _of_vmdk(os.pread(descriptor, 1 << 20, 0))


def _of_qcow2(descriptor: int, head: bytes) -> Iterator[str]:
    version, at, length = struct.unpack_from(">IQI", head, 4)
    if at:
        yield _text(descriptor, at, length)
    if version < 3:
        return
    extension = max(104, *struct.unpack_from(">I", head, 100))
    while extension + 8 <= min(at or _MOST_EXTENSIONS, _MOST_EXTENSIONS):
        kind, size = struct.unpack(">II", _exactly(descriptor, 8, extension))
        if kind == 0:
            return
        if kind == _DATA_FILE:
            yield _text(descriptor, extension + 8, size)
        extension += 8 + (size + 7) // 8 * 8


def _of_qed(descriptor: int, head: bytes) -> Iterator[str]:
    (features,) = struct.unpack_from("<Q", head, 16)
    if features & 1:
        yield _text(descriptor, *struct.unpack_from("<II", head, 56))


def _of_vmdk(descriptor_text: bytes) -> Iterator[str]:
    text = descriptor_text.split(b"\0", 1)[0].decode(errors="surrogateescape")
    yield from _PARENT.findall(text)
    yield from _EXTENT.findall(text)


def _text(descriptor: int, at: int, length: int) -> str:
    if length > LONGEST_NAME:
        raise BadHeader(f"a name of {length} bytes")
    return _exactly(descriptor, length, at).decode(errors="surrogateescape")


def _exactly(descriptor: int, length: int, at: int) -> bytes:
    if at >= 1 << 62:
        raise BadHeader(f"something at byte {at}")
    found = os.pread(descriptor, length, at)
    if len(found) < length:
        raise BadHeader("it ends within its header")
    return found


def _saved_xml(descriptor: int, head: bytes) -> str:
    """Return the domain's XML in a saved state, without what follows it. Raises BadHeader."""
    _, length = struct.unpack_from("<II", head, 16)
    if length > _MOST_XML:
        raise BadHeader(f"{length} bytes of XML")
    return os.pread(descriptor, length, _SAVED_HEADER).split(b"\0", 1)[0].decode(errors="replace")


# -- what a name means


def meant(name: str, image: Path) -> list[Where]:
    """Return every place that QEMU may take such a name in an image's header for. Raises BadHeader.

    A relative one is relative to the image's folder as it is named, which differs from the real one where the image
    is a link.
    """
    if name.startswith("json:"):
        try:
            return list(_in_options(json.loads(name.removeprefix("json:")), image))
        except ValueError as error:
            raise BadHeader(f"{image} names {name[:80]}") from error
    if name.startswith("file://"):
        return [Path(unquote(urlsplit(name).path))]
    if "://" in name:
        return [_url(name)]
    bare = _PREFIX.sub("", name)
    return [folder / each for folder in (image.parent, image.resolve().parent) for each in {name, bare}]


def _url(name: str) -> Url:
    try:
        return canonical(Url(name))
    except ValueError:
        return Url(name)


def _in_options(options: Any, image: Path, key: str = "filename") -> Iterator[Where]:
    """Yield all places that QEMU's options name, however deep: whatever looks like a file counts as one."""
    if isinstance(options, dict):
        try:
            where, _ = where_named(f"json:{json.dumps(options)}")
            yield from [where] if isinstance(where, Url) else []
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            pass
        for inner, held in options.items():
            yield from _in_options(held, image, str(inner))
    elif isinstance(options, list):
        for held in options:
            yield from _in_options(held, image, key)
    elif isinstance(options, str) and (_looks_like_a_file(options) or key.rpartition(".")[2] == "filename"):
        yield from meant(options, image)


def _looks_like_a_file(option: str) -> bool:
    return option.startswith(("/", "json:", "file:"))
