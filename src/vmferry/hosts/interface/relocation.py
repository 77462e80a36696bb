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
        """Let the other hosts read images that do not change, over NBD with TLS, until `end_serving`.

        A path is served byte for byte, a place as the content of its image.
        """

    def serve_growing(self, uuid: str, memory: Path, beyond: int) -> Prefix | None:
        """Let the other hosts read what of the VM's saved state, which is being written, will stay as it is.

        That is its beginning, in whole chunks of a transfer; the first chunk alone is written again at the end. None
        while that is no more than `beyond` bytes, and while nothing is written: what lies there may be an older one.
        What was served of it before is no longer.
        """

    def end_serving(self) -> None:
        """Nothing of this job is served any more, and nothing that `receive` let in passes."""

    @query
    def misses(self, definition: Definition, networks: Mapping[str, str]) -> Sequence[str]:
        """Networks and bridges that the VM is connected to, once mapped, and that are not here."""

    @query
    def lacks(self, definition: Definition, changes: Changes) -> Sequence[Lack]:
        """Files, folders, sockets and devices of a host that the VM's definition names, disks aside, and not here."""

    def announce(self, definition: Definition) -> None:
        """Define a placeholder: it shows the VM's name, carries the job's id, takes no memory and cannot start.

        Raises VmExists when a VM of that name or UUID is there that is not this job's placeholder.
        """

    @query
    def announced(self, uuid: str) -> bool:
        """Is what is defined there this job's placeholder?"""

    def withdraw(self, uuid: str) -> None:
        """Remove this job's placeholder; none there is fine, any other VM stays."""

    def relinquish(self, uuid: str, *, runs: bool) -> None:
        """From now on the VM cannot start here; one that runs goes on, with a placeholder for a definition.

        Raises HostRefused of one that runs though it should not.

        Its snapshots and checkpoints are forgotten, in libvirt only. `withdraw` removes the placeholder.
        """

    def reclaim(self, definition: Definition) -> None:
        """Take back a VM that was relinquished, running or off, with all that was written down."""

    def adopt(self, definition: Definition, changes: Changes) -> None:
        """Define the VM for good, in the place of this job's placeholder, with snapshots and autostart."""

    def keep_definition(self, definition: Definition, changes: Changes, path: Path) -> None:
        """Write it to a file that a person can define the VM from, replacing only our own."""

    def clear_out(self, uuid: str) -> None:
        """Remove what is left of a VM that has gone to another host: its TPM's state. Not of one that is defined."""

    def receive(self, uuid: str) -> str:
        """Be ready for a VM that comes while it runs. Returns where to: an opaque word for `migrate`."""

    def migrate(self, uuid: str, to: str, there: Changes, watch: Watch) -> None:
        """Carry a running VM's memory and the rest of these disks over; it arrives standing.

        Cut off or cancelled, it runs on here. The paths are those of the other host. Returns when it has ended here,
        also by a crash: whether it has arrived, the other host tells.
        """

    @query
    def arrived(self, uuid: str) -> bool:
        """Is the VM here, complete, running or standing? False while it is still on its way."""
