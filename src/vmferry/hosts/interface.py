"""What a host can do for a job. libvirt.py does it here, memory.py for tests.

A host is opened for looking (`token` None) or for acting in a job's name; each act is refused with
Superseded when a newer epoch of the same job has acted. Acts can be repeated: what already is so stays so.
All methods may raise HostUnreachable (try again when it is back) and HostRefused (libvirt's own reason).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmferry.hosts.records import Fold, GuestClock, Prefix, Quiesced
from vmferry.model import (
    Changes,
    Definition,
    FencingToken,
    Finding,
    Folder,
    Lack,
    Load,
    Placed,
    Power,
    Vm,
    Volume,
    Where,
)
from vmferry.model.chains import DiskChain
from vmferry.model.files import FileEntry, FileUser
from vmferry.model.processors import Cpu, CpuFit, Guests, Platform, VmNeeds
from vmferry.model.vms import FolderUse
from vmferry.transfer import Compared, Copied, Place, Transfer, Watch

DiskTransfer = Transfer[Path | Place, Path | Place]
"""Of files byte for byte, of anything else by what a guest sees of it."""


class Host(Protocol):
    name: str

    # -- looking

    def vms(self) -> Sequence[Vm]:
        """All VMs, by name."""

    def vm(self, name: str) -> Vm:
        """The VM of that name or UUID. Raises NoSuchVm."""

    def power(self, uuid: str) -> Power:
        """Its power now, after any libvirt operation in flight on it has ended."""

    def active_image(self, uuid: str, target: str) -> Where:
        """What the disk runs on now; when the VM is off, what it would start from."""

    def chains(self, uuid: str, memory: Path | None = None) -> Sequence[DiskChain] | None:
        """What its disks lie on now, in libvirt's eyes and in QEMU's; None of one that is off.

        `memory`: what it lay on when it was put into this saved state. Waits for nothing that is in flight.
        """

    def folder(self, path: Path) -> Folder: ...

    def probe(self, folder: Path, use: FolderUse) -> Sequence[Finding]:
        """What stands against such files there, tried as QEMU's user with a file that is gone at once."""

    def volume(self, where: Where) -> Volume | None:
        """The device, LUN or export there; None for a path that is no block device."""

    def allocated(self, path: Path) -> int:
        """Bytes that a file takes on its storage; 0 when it is not there."""

    def exists(self, path: Path) -> bool: ...

    def entry(self, path: Path) -> FileEntry | None:
        """What the path leads to; None where no file is."""

    def users(self, path: Where) -> tuple[str, ...]:
        """UUIDs of the VMs that name it, or whose images lie on it, as they run or from their next start on."""

    def file_users(self, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        """All who need one of these files, as far as this host knows; who cannot be asked counts as one.

        `folders`: where images may lie that no VM names, besides the files' own folders and those of libvirt's pools.
        The job's own VM is among them.
        """

    def leftovers(self, folders: Sequence[Path]) -> Sequence[Path]:
        """Files there that carry a job's id."""

    # -- processors

    def platform(self) -> Platform:
        """Its versions, and the CPUs and machine types that it has for guests."""

    def needs(self, uuid: str) -> VmNeeds:
        """What the VM asks of a host that is to take it over: one that runs or is saved, as it runs."""

    def cpu(self, xml: str) -> Cpu:
        """A <cpu> element with all its features. Raises BadCpuXml."""

    def cpu_fit(self, xml: str, guests: Guests) -> CpuFit:
        """Can it give such guests this CPU? Raises HostRefused for a model or feature that it does not know."""

    def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> Cpu:
        """The greatest CPU common to these (Offer.cpu.xml of several hosts) that can migrate.

        Raises HostRefused when there is none, or when it does not know one of them.
        """

    def set_cpu(self, uuid: str, xml: str | None, to: str) -> None:
        """Give the persistent definition this CPU, keeping in it what was there; None puts that back.

        Topology, NUMA cells and caches stay. One that runs or is saved has it after its next start.
        Raises NotPersistent.
        """

    def load(self) -> Load:
        """What its running guests and its storages bear; asked once a second, so it waits for nobody."""

    # -- files

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        """Copy a file that does not change; resumes from its bookmarks. Raises what transfer.copy raises."""

    def compare(self, transfer: DiskTransfer, watch: Watch) -> Compared:
        """Compare every byte of a copy by hash with its source."""

    def bring(self, transfers: Sequence[DiskTransfer], watch: Watch) -> Sequence[Copied]:
        """Copy and compare files that do not change, all at once; each resumes from its bookmarks."""

    def drop(self, transfer: DiskTransfer) -> None:
        """Remove an unfinished copy and its bookmarks."""

    def forget(self, transfer: DiskTransfer) -> None:
        """Remove a finished copy's bookmarks."""

    def small_copy(self, source: Path, destination: Path) -> None:
        """Copy a small file (NVRAM) whole and durably, mode and owner with it, replacing only our own."""

    def rebase(self, path: Path, backing: Placed) -> None:
        """Write another backing file into the header; data stays (qemu-img rebase -u)."""

    def promote(self, part: Path, final: Path) -> None:
        """Give a finished copy its real name, or take it back; done already is fine.

        Raises DestinationExists, never overwrites.
        """

    def remove(self, path: Path) -> None:
        """Remove a file; gone already is fine."""

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file that nobody uses; done already is fine. Raises DestinationExists."""

    def fold(self, folds: Sequence[Fold]) -> None:
        """Merge overlays that no QEMU has open into their bases, all at once; a `top` that is gone is fine.

        Removes no files. May be cut off and done again: the overlays stay as they are, and write all they hold anew.
        """

    def unchanged_since(self, transfer: DiskTransfer) -> bool:
        """Is the source still, by size and time of change, what was copied?"""

    # -- a running VM's disks

    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        """Send writes of all these disks to new overlays, at one moment, leaving no metadata.

        `quiesce_s`: ask the guest agent to freeze file systems, waiting for it at most so long.
        """

    def thaw(self, uuid: str, seconds: float) -> bool:
        """Tell the guest agent to thaw all file systems; False when it does not answer within so many seconds."""

    def set_clock(self, uuid: str, stood_s: float, seconds: float) -> GuestClock | None:
        """Have the guest agent set the guest's clock, which stood for so long; None when it does not answer.

        Each answer is waited for at most so many seconds. A clock that is right stays, and one that is off by minutes
        more than it stood: that guest has a time of its own. Whether it was set, `now_s` tells.
        """

    def unfreeze(
        self,
        uuid: str,
        target: str,
        overlays: Sequence[Path],
        base: Placed,
        watch: Watch,
        memory: Path | None = None,
    ) -> Placed:
        """Take a job's overlays, the newest first, out of a disk's chain: each is merged into what lies below it.

        Whatever somebody else has put on them stays on top. VM running, paused, off, saved by libvirt, gone, or its
        disk detached; or in this saved state of the job's own, which is dated anew. Its definition follows where it
        names them. Returns what the disk lies on then; `base` is what lay below them at first.

        A guest that runs may stand for the instant of the switch: who is cut off within leaves it standing.
        Removes no files. Raises StartedOnOverlay where a QEMU that was started on an overlay may not write the base;
        DiskHeld, SnapshotHeld, MemoryElsewhere and StillNamed where what somebody made needs them.
        """

    def mirror(self, uuid: str, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        """Start copying the active image's own data, and every further write, into an image that exists.

        That one holds what lies below the active image. A mirror that runs already gets this limit.
        """

    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        """(ready, done bytes, total bytes) of a mirror. Raises HostRefused when there is none."""

    def mirroring(self, uuid: str, target: str) -> bool:
        """Does a mirror run on the disk?"""

    def pivot(self, uuid: str, target: str) -> None:
        """Make the mirror's destination the active image."""

    def end_mirror(self, uuid: str, target: str, destination: Placed) -> None:
        """Stop the mirror to there; the disk stays where it was. None running is fine, another one runs on."""

    def suspend(self, uuid: str) -> bool:
        """Make a VM that runs stand. Returns whether it ran until now."""

    def resume(self, uuid: str) -> None:
        """Let a VM that stands run; nothing happens to one that runs, or is off."""

    # -- memory

    def save(self, uuid: str, memory: Path, watch: Watch, bytes_s: int | None = None) -> bool:
        """Put the VM into saved state: memory is written while the guest runs, then it stops for good.

        `bytes_s`: while it runs, and until each page was written once, no faster. The slower, the less is left to be
        written when it stands. Returns whether somebody else paused it meanwhile.
        """

    def saved(self, uuid: str, memory: Path) -> bool:
        """Is the VM off, or not known, with a complete saved state that is newer than its disks?"""

    def define_saved(self, uuid: str, memory: Path) -> None:
        """Define a VM that is not known, as its saved state has it: somebody has undefined it."""

    def restore(self, uuid: str, memory: Path, changes: Changes) -> Sequence[str]:
        """Load a saved state, the guest standing, on these active images. Returns discs ejected since they are gone."""

    def lacks_to_load(self, uuid: str, memory: Path, changes: Changes) -> Sequence[Lack]:
        """What keeps this saved state from being loaded with these changes: files, networks, secrets, devices."""

    def release(self, uuid: str, memory: Path, *, run: bool) -> float:
        """Spend the saved state, then let the guest run: it can never be loaded again. Returns the pause in s.

        Spending comes first, durably: a state that may have run once must not run again. The file itself
        goes later, by `remove`.
        """

    def spent(self, memory: Path) -> bool:
        """Has the saved state been released?"""

    def renew(self, memory: Path) -> None:
        """Date a saved state anew: since the guest stopped its disks were rewritten by us alone, and hold the same."""

    def unload(self, uuid: str) -> None:
        """End a VM that was restored and never released; its saved state stays good."""

    # -- definitions

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

    def refresh_pools(self, folders: Sequence[Path]) -> None:
        """Let libvirt's storage pools over these folders look again what is there."""

    def make_persistent(self, uuid: str) -> None:
        """Define a transient VM, so that it survives a stop."""

    def make_transient(self, uuid: str) -> None:
        """Undefine a running VM that was transient; one that is off stays defined."""

    # -- between two hosts

    def definition(self, uuid: str) -> Definition:
        """All that libvirt has written down about the VM. Raises NoSuchVm."""

    def mark_of(self, path: Path) -> str:
        """Changes with every write to the file; empty when it is not there."""

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

    def misses(self, definition: Definition, networks: Mapping[str, str]) -> Sequence[str]:
        """Networks and bridges that the VM is connected to, once mapped, and that are not here."""

    def lacks(self, definition: Definition, changes: Changes) -> Sequence[Lack]:
        """Files, folders, sockets and devices of a host that the VM's definition names, disks aside, and not here."""

    def lacks_to_start(self, uuid: str) -> Sequence[Lack]:
        """What libvirt here would miss if it had to start the VM again as it runs now, or, off, as it is defined."""

    def definition_now(self, uuid: str) -> Definition:
        """The VM as it runs now, which its definition may no longer say; without snapshots. Raises NoSuchVm."""

    def refusal(self, definition: Definition, changes: Changes) -> str:
        """What libvirt here says against such a VM, whatever files it needs; empty when it would define it."""

    def content_of(self, path: Path) -> str:
        """A hash of what a guest reads of a raw file, in whole sectors; empty when it is not there."""

    def announce(self, definition: Definition) -> None:
        """Define a placeholder: it shows the VM's name, carries the job's id, takes no memory and cannot start.

        Raises VmExists when a VM of that name or UUID is there that is not this job's placeholder.
        """

    def defined(self, uuid: str) -> bool:
        """Does libvirt know the VM, or a placeholder for it, also when it does not run?"""

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

    def void(self, memory: Path) -> None:
        """A saved state that nobody loaded can never be loaded here. Raises SavedStateSpent if one was released."""

    def receive(self, uuid: str) -> str:
        """Be ready for a VM that comes while it runs. Returns where to: an opaque word for `migrate`."""

    def migrate(self, uuid: str, to: str, there: Changes, watch: Watch) -> None:
        """Carry a running VM's memory and the rest of these disks over; it arrives standing.

        Cut off or cancelled, it runs on here. The paths are those of the other host. Returns when it has ended here,
        also by a crash: whether it has arrived, the other host tells.
        """

    def standing_s(self, uuid: str) -> float:
        """Seconds since QEMU stopped the guest's CPUs; 0 when that was not seen."""

    def arrived(self, uuid: str) -> bool:
        """Is the VM here, complete, running or standing? False while it is still on its way."""


def filesystem_of(folder: Folder, host: Host) -> str:
    """Two hosts may number their file systems alike."""
    return f"{folder.filesystem} of {host.name}"


class Hosts(Protocol):
    """Where hosts come from."""

    def open(self, connect: str, token: FencingToken | None = None) -> Host: ...
