"""The contract of steps, and a job as its steps see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from blake3 import blake3

from vmferry.errors import NoSuchVm
from vmferry.hosts.asking import AskUsers, ask_host
from vmferry.hosts.interface import DiskTransfer, Host
from vmferry.migration.facts import JobFacts
from vmferry.model import (
    Changes,
    DiskMove,
    DiskProgress,
    FileMove,
    ImageMove,
    JobState,
    Lost,
    Phase,
    Placed,
    Plan,
    Power,
    Url,
    Where,
)
from vmferry.model.names import Overlay, beside, overlay_in
from vmferry.qemu.names import qemu_name
from vmferry.transfer import Place, Throttle, Transfer

COPY_SUFFIX = ".part"
"""Of a copy until it is whole."""


class Control(Protocol):
    """The interface by which a long step reports, and hears of cancel, pause and new limits: once a second at least."""

    throttle: Throttle

    @property
    def max_pause_s(self) -> float:
        """Allowed pause of the guest in seconds, as asked now; it may change while the job runs."""

    @property
    def suspended(self) -> bool:
        """True while the user wants the job to stand still where it can."""

    def check(self) -> None:
        """Raise Cancelled if the user wants the job undone, Superseded if another worker has it.

        A suspendable control raises Suspended too.
        """

    def wait(self, seconds: float) -> None:
        """Stand still for so many seconds, or until something changes. Checks first, and raises what `check` raises."""

    def disk(self, progress: DiskProgress, rate_bytes_s: float) -> None:
        """Report how far one disk is, and the rate in bytes a second."""

    def says(self, now: str) -> None:
        """Report what happens, in words."""

    def waits(self, why: str) -> None:
        """Report what the job waits for; shown until progress, or what happens, is reported."""

    def forecast(self, pause_s: float) -> None:
        """Report the pause in seconds that is expected if the job were cut over now."""

    def phase(self, phase: Phase) -> None:
        """Record a finished phase for the receipt; one of the same name is replaced."""

    def state(self, state: JobState, why: str = "") -> None:
        """Change the job's state, recorded before this returns."""

    def suspendable(self) -> Control:
        """Return a control of this job that also raises Suspended: for steps that may stand still."""

    def uncancellable(self) -> Control:
        """Return a control of this job that no longer raises Cancelled: for undo, and past the point of no return."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its steps see it. All names come from its id, so that another process can undo it."""

    id: str
    plan: Plan
    host: Host
    """Where the VM is when the job begins."""
    there: Host
    """Where it goes to: the same host, or another one."""
    facts: JobFacts
    control: Control
    bookmarks: Path
    """Folder of the transfers' bookmarks."""
    ask: AskUsers = ask_host
    """Who needs a file."""

    def suspendable(self) -> Job:
        """Return this job with a control that also raises Suspended."""
        return replace(self, control=self.control.suspendable())

    def uncancellable(self) -> Job:
        """Return this job with a control that no longer raises Cancelled."""
        return replace(self, control=self.control.uncancellable())

    @property
    def lost(self) -> Lost | None:
        """The end that an operator has declared lost, else None: nothing is asked of it any more."""
        lost = self.facts.lost
        return None if lost is None else Lost(lost)

    # -- names: computed, never remembered

    @property
    def tag(self) -> str:
        return f"vmferry-{self.id}"

    def part(self, image: ImageMove) -> Path:
        """Return the temporary name of an image's file at the destination, while it is copied."""
        return beside(file_of(image.destination), f".{self.tag}.part")

    def file_part(self, file: FileMove) -> Path:
        return beside(file.destination, f".{self.tag}.part")

    def overlay(self, disk: DiskMove, round_: int) -> Path:
        """Return the path of the overlay at the source that takes the writes of a round."""
        return overlay_beside(disk.overlays, Overlay(self.id, round_))

    def overlay_copy(self, disk: DiskMove, round_: int) -> Path:
        """Return the path of a round's overlay at the destination, until it is folded into the copy."""
        return overlay_beside(disk.overlay_copies, Overlay(self.id, round_))

    @property
    def memory(self) -> Path:
        """Path of the saved state at the destination, beside the first disk's overlays there."""
        return self.plan.disks[0].overlay_copies.with_name(f"{self.tag}.memory")

    @property
    def saved(self) -> Path:
        """Path that the saved state is written to: at the destination, or at the source to be carried elsewhere."""
        if not self.plan.relocates:
            return self.memory
        return self.plan.disks[0].overlays.with_name(f"{self.tag}.memory")

    def transfer(self, source: Path, destination: Path) -> Transfer:
        """Return the transfer of a file, byte for byte."""
        return Transfer(source, destination, self._bookmarks_of(destination))

    def base_transfer(self, image: ImageMove) -> DiskTransfer:
        """Return the transfer of an image of the base: byte for byte between files, else of what the guest sees."""
        if image.bytewise:
            return self.transfer(file_of(image.source), self.part(image))
        destination = image.destination if image.to_volume else self.part(image)
        source = Place(qemu_name(image.from_), image.format)
        there = Place(str(destination), image.to.format, exists=image.to_volume)
        return Transfer(source, there, self._bookmarks_of(destination))

    def opened(self, transfer: DiskTransfer) -> DiskTransfer:
        """Return the transfer as the host that it goes to can run it: what lies on another host is served to it."""
        return self.all_opened([transfer])[0]

    def all_opened(self, transfers: Sequence[DiskTransfer]) -> Sequence[DiskTransfer]:
        """Return the transfers as the host that they go to can run them: what lies on another host is served to it."""
        if not self.plan.relocates:
            return transfers
        served = self.host.serve([transfer.source for transfer in transfers])
        return [from_served(source, transfer) for source, transfer in zip(served, transfers, strict=True)]

    def closed(self, transfer: DiskTransfer) -> DiskTransfer:
        """Return a transfer for calls that need only its destination: another host knows no path of this one."""
        if not self.plan.relocates:
            return transfer
        return Transfer(transfer.destination, transfer.destination, transfer.bookmarks)

    def _bookmarks_of(self, destination: Where) -> Path:
        """Return a destination's bookmark file, by a hash of its path: disks of one name may go to several folders."""
        name = blake3(str(destination).encode()).hexdigest(8)
        return self.bookmarks / f"{name}.bookmarks"

    # -- what the plan moves

    @property
    def uuid(self) -> str:
        return self.plan.uuid

    @property
    def frozen_disks(self) -> tuple[DiskMove, ...]:
        return tuple(d for d in self.plan.disks if d.frozen)

    @property
    def persistent(self) -> bool:
        """Tell whether the VM will be defined in the end: not if it was transient, nor if somebody has undefined it."""
        return self.plan.persistent and not self.facts.undefined

    def round_of(self, disk: DiskMove) -> int | None:
        """Return the round whose overlay is active at the source now; None before the freeze. Raises NoSuchVm."""
        active = self.host.active_image(self.uuid, disk.target)
        if not isinstance(active, Path):
            return None
        found = overlay_in(active.name)
        return found.round if found and active == self.overlay(disk, found.round) else None

    def paths(self) -> dict[Path, Path]:
        """Return old path to new path of every file that moves."""
        moved = {image.source: image.destination for image in self.plan.images}
        files = {s: d for s, d in moved.items() if isinstance(s, Path) and isinstance(d, Path)}
        return files | self.file_paths()

    def changes(self, disks: Mapping[str, Placed]) -> Changes:
        """Return what differs in the definition at the destination once these are the active images."""
        return Changes(disks, self.file_paths(), self.plan.networks, self.plan.media)

    def file_paths(self) -> dict[Path, Path]:
        return {file.source: file.destination for file in self.plan.files}


def from_served(source: Place, transfer: DiskTransfer) -> DiskTransfer:
    """Return the transfer with its source replaced by what another host serves of it, for the host that it goes to."""
    there = transfer.destination
    return replace(transfer, source=source, destination=Place(str(there)) if isinstance(there, Path) else there)


def file_of(where: Where) -> Path:
    """Return the path of a place that the plan says is a file. Raises TypeError for a URL."""
    if isinstance(where, Url):
        raise TypeError(f"{where} is no file")
    return where


def inode_of(host: Host, path: Path) -> str:
    """Return what tells the file that the path leads to from any other of that file system; empty where none is."""
    entry = host.entry(path)
    return "" if entry is None else str(entry.inode)


def overlay_beside(path: Path, overlay: Overlay) -> Path:
    """Return the path of a job's overlay beside this one, with room for the name of its copy under way."""
    return beside(path, overlay.suffix, room=COPY_SUFFIX)


def part_of(copy: Path) -> Path:
    """Return the temporary name of a closed file's copy, until it is whole and compared."""
    return copy.with_name(f"{copy.name}{COPY_SUFFIX}")


def added(known: Sequence[str] | None, paths: Iterable[Path]) -> list[str]:
    """Return a fact that lists paths, with these added: each once."""
    return [*dict.fromkeys([*(known or ()), *map(str, paths)])]


def rounds(job: Job) -> int:
    """The highest round that was ever begun."""
    return job.facts.rounds


def overlays(job: Job, disk: DiskMove, newest: int | None = None) -> list[Path]:
    """Return the overlays that may exist for a disk, newest first, from round `newest` (default: the highest begun)."""
    last = rounds(job) if newest is None else newest
    return [job.overlay(disk, round_) for round_ in range(last, -1, -1)]


def power_of(host: Host, uuid: str) -> Power:
    """Return the VM's power state at the host; OFF if the VM is not known there."""
    try:
        return host.power(uuid)
    except NoSuchVm:
        return Power.OFF


def known(host: Host, uuid: str) -> bool:
    """Tell whether the host knows the VM, also if it only runs and is not defined."""
    try:
        host.power(uuid)
    except NoSuchVm:
        return False
    return True


class Step:
    """One thing that a job does: it can be undone, and can tell after a crash whether it took effect.

    It keeps nothing in itself. `do` and `undo` may each be called twice, or after being cut off half way.
    """

    says: str = ""
    may_stand: ClassVar[bool] = False
    """A person may have the job stand still in it: its `do` is cut off by Suspended, and done again."""
    undone_last: ClassVar[bool] = False
    """Its undo only takes away what the job has made at the destination: that waits until the VM is home."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def do(self, job: Job) -> None:
        raise NotImplementedError

    def undo(self, job: Job) -> None:
        """Put back what `do` changed; nothing, unless a step says otherwise."""

    def found(self, job: Job) -> bool:
        """Tell whether `do` has taken full effect. False when in doubt: `do` can be repeated."""
        return False

    def crossed(self, job: Job) -> bool:
        """Tell whether any part of the step has taken effect. Asked of the point of no return only."""
        return self.found(job)

    def overtaken(self, job: Job) -> bool:
        """Tell whether somebody else made the way back lose writes. Asked of steps before the point of no return."""
        return False
