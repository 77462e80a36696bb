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
        """Put the VM into saved state: memory is written while the guest runs, then it stops for good.

        `bytes_s`: while it runs, and until each page was written once, no faster. The slower, the less is left to be
        written when it stands. Returns whether somebody else paused it meanwhile.
        """

    @query
    def saved(self, uuid: str, memory: Path) -> bool:
        """Is the VM off, or not known, with a complete saved state that is newer than its disks?"""

    def define_saved(self, uuid: str, memory: Path) -> None:
        """Define a VM that is not known, as its saved state has it: somebody has undefined it."""

    def restore(self, uuid: str, memory: Path, changes: Changes) -> Sequence[str]:
        """Load a saved state, the guest standing, on these active images. Returns discs ejected since they are gone."""

    @query
    def lacks_to_load(self, uuid: str, memory: Path, changes: Changes) -> Sequence[Lack]:
        """What keeps this saved state from being loaded with these changes: files, networks, secrets, devices."""

    def release(self, uuid: str, memory: Path, *, run: bool) -> float:
        """Spend the saved state, then let the guest run: it can never be loaded again. Returns the pause in s.

        Spending comes first, durably: a state that may have run once must not run again. The file itself
        goes later, by `remove`.
        """

    @query
    def spent(self, memory: Path) -> bool:
        """Has the saved state been released?"""

    def renew(self, memory: Path) -> None:
        """Date a saved state anew: since the guest stopped its disks were rewritten by us alone, and hold the same."""

    def unload(self, uuid: str) -> None:
        """End a VM that was restored and never released; its saved state stays good."""

    def void(self, memory: Path) -> None:
        """A saved state that nobody loaded can never be loaded here. Raises SavedStateSpent if one was released."""

    @query
    def standing_s(self, uuid: str) -> float:
        """Seconds since QEMU stopped the guest's CPUs; 0 when that was not seen."""
