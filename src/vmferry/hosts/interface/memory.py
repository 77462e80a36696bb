"""A VM's memory: saved states, and what keeps one from being loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.model import Changes, Lack
from vmferry.transfer import Watch


class GuestMemory(Protocol):
    """A VM's memory: saved states, and what keeps one from being loaded."""

    def save(self, uuid: str, memory: Path, watch: Watch, bytes_s: int | None = None) -> bool:
        """Put the VM into saved state: write its memory while the guest runs, then stop the guest for good.

        `bytes_s`: the highest rate, in bytes per second, while the guest runs and until each page was written once. The
        slower, the less is left to be written once it is stopped. Returns whether somebody else paused it meanwhile.
        """

    @query
    def saved(self, uuid: str, memory: Path) -> bool:
        """Is the VM off, or not known, with a complete saved state that is newer than its disks?

        May raise SavedStateUncertain for a complete state that is older than one of the disks.
        """

    def define_saved(self, uuid: str, memory: Path) -> None:
        """Define a VM, which somebody has undefined, as its saved state describes it."""

    def restore(self, uuid: str, memory: Path, changes: Changes) -> Sequence[str]:
        """Load a saved state on the images in `changes`, with the guest paused.

        Returns what was left out since its file is gone: discs, and a kernel that the guest was started from.
        """

    @query
    def lacks_to_load(self, uuid: str, memory: Path, changes: Changes) -> Sequence[Lack]:
        """Return what this saved state lacks to be loaded with these changes: files, networks, secrets, devices."""

    def release(self, uuid: str, memory: Path, *, run: bool) -> float:
        """Spend the saved state, so that it can never be loaded again, then `run` the guest. Returns the pause in s.

        Spending comes first, durably: a state that may have run once must not run again. The file itself
        goes later, by `remove`.
        """

    @query
    def spent(self, memory: Path) -> bool:
        """Has the saved state been released?"""

    def renew(self, memory: Path) -> None:
        """Date a saved state anew: vmferry alone has rewritten the stopped guest's disks, to the same content."""

    def unload(self, uuid: str) -> None:
        """End a VM that was restored and never released; its saved state can still be loaded."""

    def void(self, memory: Path) -> None:
        """Keep a saved state that nobody loaded from being loaded here, ever. Raises SavedStateSpent if released."""

    @query
    def standing_s(self, uuid: str) -> float:
        """Return the seconds since QEMU stopped the guest's CPUs; 0 when that was not seen."""
