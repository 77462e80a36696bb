"""A VM on its way from this host to another, or from another to this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.hosts.records import Prefix
from vmferry.model import Changes, Definition, Lack
from vmferry.transfer import Place, Watch


class Relocation(Protocol):
    """A VM on its way from this host to another, or from another to this one."""

    def serve(self, sources: Sequence[Path | Place]) -> Sequence[Place]:
        """Serve images that do not change to other hosts, over NBD with TLS, until `end_serving`. Returns where.

        A path is served byte for byte, a Place as the content of its image.
        """

    def serve_growing(self, uuid: str, memory: Path, beyond: int) -> Prefix | None:
        """Serve the settled beginning of the VM's saved state to other hosts, while the state is being written.

        The beginning counts in whole chunks of a transfer; the first chunk alone is written again at the end. None
        while it is no more than `beyond` bytes, and while no state is being written: the file may be an older one.
        What was served of the file before is no longer served.
        """

    def end_serving(self) -> None:
        """End all exports of this job, and cut all that `receive` let in."""

    @query
    def misses(self, definition: Definition, networks: Mapping[str, str]) -> Sequence[str]:
        """Return the networks, bridges and devices that the VM is connected to and that, once mapped, are not here.

        Each by its name from before the mapping.
        """

    @query
    def lacks(self, definition: Definition, changes: Changes) -> Sequence[Lack]:
        """Return what the VM's definition names of its host, discs and what `changes` brings aside, and is not here.

        That is files, folders, sockets and devices; unless `changes.cold` also free huge pages and screens' ports. With
        `changes.disks`, which come along, also other disks.
        """

    def announce(self, definition: Definition) -> None:
        """Define a placeholder: it shows the VM's name, carries the job's id, takes no memory and cannot start.

        Raises VmExists when a VM of that name or UUID is there that is not this job's placeholder.
        """

    @query
    def announced(self, uuid: str) -> bool:
        """Is the VM with this UUID, as it is defined here, this job's placeholder?"""

    def withdraw(self, uuid: str) -> None:
        """Remove this job's placeholder for the VM, if it is there; any other VM stays."""

    def relinquish(self, uuid: str, *, runs: bool) -> None:
        """Keep the VM from ever starting here; one that runs goes on, with a placeholder as its definition.

        Its snapshots and checkpoints are forgotten, in libvirt only. `withdraw` removes the placeholder. Raises
        HostRefused for a VM that runs without `runs`.
        """

    def reclaim(self, definition: Definition) -> None:
        """Define a VM that was relinquished again, running or off, with all that its definition holds."""

    def adopt(self, definition: Definition, changes: Changes) -> None:
        """Define the VM for good, in place of this job's placeholder, with snapshots, checkpoints and autostart."""

    def keep_definition(self, definition: Definition, changes: Changes, path: Path) -> None:
        """Write the changed definition to a file that a person can define the VM from.

        The file may replace only one of vmferry's own.
        """

    def clear_out(self, uuid: str) -> None:
        """Remove what a VM that went to another host left here, its TPM's state; nothing of a VM that is defined."""

    def receive(self, uuid: str) -> str:
        """Prepare for a VM that migrates here while it runs. Returns an opaque address, which is `to` of `migrate`."""

    def migrate(self, uuid: str, to: str, there: Changes, watch: Watch) -> None:
        """Migrate a running VM's memory, and the rest of the disks in `there`, to another host; it arrives paused.

        Cut off or cancelled, the VM runs on here. The paths are those of the other host. Returns when its QEMU has
        ended here, also by a crash: whether the VM has arrived, `arrived` of the other host tells.
        """

    @query
    def arrived(self, uuid: str) -> bool:
        """Is the VM here, complete, running or paused? False while it is still on its way."""
