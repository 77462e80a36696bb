"""Names of files that a job makes beside others: the same for the same file each time, and never longer than may be."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import NamedTuple

LONGEST_BYTES = 255
"""Of a file's name, on Linux's file systems."""
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Of an id: none that a person could take for another one."""
ID = "[a-z0-9]{8}"
"""An id, in a regular expression."""
_MADE = re.compile(rf"(?:^|\.)vmferry-({ID})(?:\.r\d+\.qcow2|\.memory|\.probe)?(?:\.part|\.spent|\.named)*$")
_MARK_CHARS = 8
_DELETE = 127
_LONGEST_PATH_BYTES = 4095
_OVERLAY = re.compile(rf"\.vmferry-({ID})\.r(\d+)\.qcow2$")


def unfit(path: Path) -> str:
    """Say why no file of a VM can have this path; empty where it can.

    libvirt's XML turns tabs and line breaks into spaces, and takes no other control characters: a definition would
    name another file.
    """
    if any(ord(letter) < ord(" ") or ord(letter) == _DELETE for letter in str(path)):
        return "it has a tab, a line break or another control character, which libvirt does not keep"
    if any(len(os.fsencode(part)) > LONGEST_BYTES for part in path.parts):
        return f"one of its names is longer than the {LONGEST_BYTES} bytes that file systems take"
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        return f"it is longer than the {_LONGEST_PATH_BYTES} bytes that Linux takes"
    return ""


def new_id() -> str:
    """Return a new random id for a job or a transfer: 8 characters of LETTERS."""
    return "".join(secrets.choice(LETTERS) for _ in range(8))


class Overlay(NamedTuple):
    """The job and the round that an overlay's name tells."""

    job: str
    round: int

    @property
    def suffix(self) -> str:
        """End of an overlay's file name.

        AppArmor's helper of libvirt may read files in any folder, but only by the names that images have.
        """
        return f".vmferry-{self.job}.r{self.round}.qcow2"


def maker_of(name: str) -> str | None:
    """Return the id of the job that has made a file of this name; None for a name that no job makes.

    What other tools derive from such a name is theirs: a snapshot "x" of an overlay is called `....vmferry-ID.r0.x`.
    """
    found = _MADE.search(name)
    return None if found is None else found[1]


def overlay_in(name: str) -> Overlay | None:
    """Return the job and round that a file's name or path tells; None where no job has named it so."""
    found = _OVERLAY.search(name)
    return None if found is None else Overlay(found[1], int(found[2]))


def beside(path: Path, suffix: str, *, room: str = "") -> Path:
    """Return the file of this name with a suffix, in the same folder.

    A name that would be too long is cut, with a hash of the whole in place of what was cut. `room` is what later names
    may add to this one.
    """
    return path.with_name(with_suffix(path.name, suffix, room=room))


def with_suffix(name: str, suffix: str, *, room: str = "") -> str:
    """Return a file's name with a suffix, of at most LONGEST_BYTES together with what `room` names.

    A longer name is cut between characters, as UTF-8 has them, with a hash of the whole in place of what was cut.
    """
    whole = f"{name}{suffix}"
    most = LONGEST_BYTES - len(room.encode())
    if len(whole.encode()) <= most:
        return whole
    mark = f"~{hashlib.blake2b(name.encode()).hexdigest()[:_MARK_CHARS]}"
    kept = name.encode()[: most - len(f"{mark}{suffix}".encode())]
    return f"{kept.decode(errors='ignore')}{mark}{suffix}"
