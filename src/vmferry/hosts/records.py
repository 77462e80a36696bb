"""Records that are passed to a host, or returned by it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from vmferry.model import Placed
from vmferry.transfer import Place


class Quiesced(StrEnum):
    """Whether a guest's file systems were frozen while its disks were."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"
    """The guest agent was asked to freeze and did not confirm it: it may do so yet, and has to be asked to thaw."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a file that grows, served to other hosts."""

    place: Place
    bytes: int


class GuestClock(NamedTuple):
    """Seconds that a guest's own clock was behind its host's and is now; less than 0 when it is ahead."""

    before_s: float
    now_s: float


class Fold(NamedTuple):
    """Overlays that no QEMU has open, from `top` down, which are to be merged into `base`."""

    top: Path
    base: Placed
    """The image that takes what lies above it; it is written."""
