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
        """Return all VMs, sorted by name."""

    @query
    def vm(self, name: str) -> Vm:
        """Return the VM of that name or UUID. Raises NoSuchVm."""

    @query
    def power(self, uuid: str) -> Power:
        """Return whether the VM is running, paused or off, after any libvirt operation in flight on it has ended."""

    @query
    def run_of(self, uuid: str) -> str:
        """Return what tells one start of the VM from every other: another text after each, empty while it is off."""

    @query
    def defined(self, uuid: str) -> bool:
        """Does libvirt know the VM, or a placeholder for it, also when it does not run?"""

    @query
    def definition(self, uuid: str) -> Definition:
        """Return all that libvirt has written down about the VM. Raises NoSuchVm."""

    @query
    def definition_now(self, uuid: str) -> Definition:
        """Return the VM as it runs now, which may differ from its definition; without snapshots. Raises NoSuchVm."""

    @query
    def lacks_to_start(self, uuid: str) -> Sequence[Lack]:
        """Return what this host lacks to start the VM again as it runs now or, when it is off, as it is defined."""

    @query
    def refusal(self, definition: Definition, changes: Changes) -> str:
        """Return libvirt's objection to the changed definition, missing files aside; empty when it would accept it."""

    def suspend(self, uuid: str) -> bool:
        """Pause a running VM. Returns whether it ran until now."""

    def resume(self, uuid: str) -> None:
        """Let a paused VM run; nothing happens to one that runs, or is off."""

    def thaw(self, uuid: str, seconds: float) -> bool:
        """Have the guest agent thaw all file systems; False when it does not answer within so many seconds."""

    def set_clock(self, uuid: str, stood_s: float, seconds: float) -> GuestClock | None:
        """Have the guest agent set the guest's clock, which stood for `stood_s`; None when it does not answer.

        Each answer is waited for at most `seconds`. A clock that is right is not set, nor one that is off by minutes
        more than it stood: that guest has a time of its own. `now_s` of the answer tells whether it was set.
        """

    def point(
        self,
        uuid: str,
        disks: Mapping[str, Placed],
        files: Mapping[Path, Path],
        sources: Mapping[str, Sequence[Where]],
    ) -> Sequence[str]:
        """Make the VM's persistent definition use these images and files, where it names one of the `sources`.

        Returns the disks for which it names another image: a person put that there, so it stays.
        """

    def rewrite_snapshots(self, uuid: str, paths: Mapping[Path, Path]) -> None:
        """Replace paths in libvirt's metadata of the VM's snapshots by new ones."""

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
