"""VMs: what is known of one, its power, its guest, and what libvirt has written down about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.hosts.records import GuestClock
from vmferry.model import Changes, Definition, Lack, Placed, Power, Vm, Where


class VirtualMachines(Protocol):
    """VMs: what is known of one, its power, its guest, and what libvirt has written down about it."""

    @query
    def vms(self) -> Sequence[Vm]:
        """All VMs, by name."""

    @query
    def vm(self, name: str) -> Vm:
        """The VM of that name or UUID. Raises NoSuchVm."""

    @query
    def power(self, uuid: str) -> Power:
        """Its power now, after any libvirt operation in flight on it has ended."""

    @query
    def defined(self, uuid: str) -> bool:
        """Does libvirt know the VM, or a placeholder for it, also when it does not run?"""

    @query
    def definition(self, uuid: str) -> Definition:
        """All that libvirt has written down about the VM. Raises NoSuchVm."""

    @query
    def definition_now(self, uuid: str) -> Definition:
        """The VM as it runs now, which its definition may no longer say; without snapshots. Raises NoSuchVm."""

    @query
    def lacks_to_start(self, uuid: str) -> Sequence[Lack]:
        """What libvirt here would miss if it had to start the VM again as it runs now, or, off, as it is defined."""

    @query
    def refusal(self, definition: Definition, changes: Changes) -> str:
        """What libvirt here says against such a VM, whatever files it needs; empty when it would define it."""

    def suspend(self, uuid: str) -> bool:
        """Make a VM that runs stand. Returns whether it ran until now."""

    def resume(self, uuid: str) -> None:
        """Let a VM that stands run; nothing happens to one that runs, or is off."""

    def thaw(self, uuid: str, seconds: float) -> bool:
        """Tell the guest agent to thaw all file systems; False when it does not answer within so many seconds."""

    def set_clock(self, uuid: str, stood_s: float, seconds: float) -> GuestClock | None:
        """Have the guest agent set the guest's clock, which stood for so long; None when it does not answer.

        Each answer is waited for at most so many seconds. A clock that is right stays, and one that is off by minutes
        more than it stood: that guest has a time of its own. Whether it was set, `now_s` tells.
        """

    def point(
        self,
        uuid: str,
        disks: Mapping[str, Placed],
        files: Mapping[Path, Path],
        sources: Mapping[str, Sequence[Where]],
    ) -> Sequence[str]:
        """Make the persistent definition use these active images and files, where it names one of the sources.

        Returns the disks for which it names another one: a person put that there, so it stays.
        """

    def rewrite_snapshots(self, uuid: str, paths: Mapping[Path, Path]) -> None:
        """Make libvirt's snapshot metadata name the new paths."""

    def forget_checkpoints(self, uuid: str) -> None:
        """Make libvirt forget the VM's checkpoints, so that no backup is based on one; bitmaps stay in the images."""

    def recall_checkpoints(self, definition: Definition) -> None:
        """Make libvirt know the definition's checkpoints again; those that it knows are left alone."""

    def drop_checkpoints(self, definition: Definition) -> None:
        """Forget the definition's checkpoints, and remove their bitmaps from the images that the VM has now."""

    def make_persistent(self, uuid: str) -> None:
        """Define a transient VM, so that it survives a stop."""

    def make_transient(self, uuid: str) -> None:
        """Undefine a running VM that was transient; one that is off stays defined."""
