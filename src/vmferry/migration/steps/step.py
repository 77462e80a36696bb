"""The step contract, and what a step sees of its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Where a long step reports, and hears of cancel, pause and new limits: at least once a second."""

    throttle: Throttle

    @property
    def max_pause_s(self) -> float:
        """As asked now; it may change while the job runs."""

    @property
    def suspended(self) -> bool:
        """Does the user want the job to stand still where it can?"""

    def check(self) -> None:
        """Raises Cancelled if the user wants the job undone, Superseded if another worker has it.

        A suspendable one raises Suspended too.
        """

    def wait(self, seconds: float) -> None:
        """Stand still for so long, or until something changes; checks first."""

    def disk(self, progress: DiskProgress, rate_bytes_s: float) -> None:
        """Report how far one disk is."""

    def says(self, now: str) -> None:
        """Report what happens, in words."""

    def waits(self, why: str) -> None:
        """Report what it waits for; said until progress is reported, or what happens."""

    def forecast(self, pause_s: float) -> None:
        """Report the pause expected if the job were cut over now."""

    def phase(self, phase: Phase) -> None:
        """Record a finished phase for the receipt; one of the same name is replaced."""

    def state(self, state: JobState, why: str = "") -> None:
        """Change the job's state, recorded before this returns."""

    def suspendable(self) -> Control:
        """The same control, hearing suspend: for steps that may stand still."""

    def uncancellable(self) -> Control:
        """The same control, no longer hearing cancel: for undo, and past the point of no return."""


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
        """The same job, hearing suspend."""
        return replace(self, control=self.control.suspendable())

    def uncancellable(self) -> Job:
        """The same job, no longer hearing cancel."""
        return replace(self, control=self.control.uncancellable())

    @property
    def lost(self) -> Lost | None:
        """The end that an operator has declared lost: nothing is asked of it any more."""
        told = self.facts.lost
        return None if told is None else Lost(told)

    # -- names: computed, never remembered

    @property
    def tag(self) -> str:
        return f"vmferry-{self.id}"

    def part(self, image: ImageMove) -> Path:
        """The temporary name of a file that is made, while it is copied."""
        return beside(file_of(image.destination), f".{self.tag}.part")

    def file_part(self, file: FileMove) -> Path:
        return beside(file.destination, f".{self.tag}.part")

    def overlay(self, disk: DiskMove, round_: int) -> Path:
        """The overlay at the source that takes the writes of a round."""
        return beside(disk.overlays, Overlay(self.id, round_).suffix, room=COPY_SUFFIX)

    def overlay_copy(self, disk: DiskMove, round_: int) -> Path:
        """The same overlay at the destination, until it is folded into the copy."""
        return beside(disk.overlay_copies, Overlay(self.id, round_).suffix, room=COPY_SUFFIX)

    @property
    def memory(self) -> Path:
        """The saved state, beside the first disk's overlays at the destination."""
        return self.plan.disks[0].overlay_copies.with_name(f"{self.tag}.memory")

    @property
    def saved(self) -> Path:
        """Where the saved state is written: at the destination, or at the source to be carried to another host."""
        if not self.plan.relocates:
            return self.memory
        return self.plan.disks[0].overlays.with_name(f"{self.tag}.memory")

    def transfer(self, source: Path, destination: Path) -> Transfer:
        """Of a file, byte for byte."""
        return Transfer(source, destination, self._bookmarks_of(destination))

    def base_transfer(self, image: ImageMove) -> DiskTransfer:
        """Of an image of the base: byte for byte between files, else what the guest sees of it."""
        if image.bytewise:
            return self.transfer(file_of(image.source), self.part(image))
        destination = image.destination if image.to_volume else self.part(image)
        source = Place(qemu_name(image.from_), image.format)
        there = Place(str(destination), image.to.format, exists=image.to_volume)
        return Transfer(source, there, self._bookmarks_of(destination))

    def opened(self, transfer: DiskTransfer) -> DiskTransfer:
        """The same transfer for the host that it goes to."""
        return self.all_opened([transfer])[0]

    def all_opened(self, transfers: Sequence[DiskTransfer]) -> Sequence[DiskTransfer]:
        """The same transfers for the host that they go to: what lies on another one is served to it."""
        if not self.plan.relocates:
            return transfers
        served = self.host.serve([transfer.source for transfer in transfers])
        return [from_served(source, transfer) for source, transfer in zip(served, transfers, strict=True)]

    def closed(self, transfer: DiskTransfer) -> DiskTransfer:
        """The same transfer for what asks only for its destination: another host knows no path of this one."""
        if not self.plan.relocates:
            return transfer
        return Transfer(transfer.destination, transfer.destination, transfer.bookmarks)

    def _bookmarks_of(self, destination: Where) -> Path:
        """Disks of one name may go to several folders."""
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
        """Will the VM be defined in the end? Not one that was transient, nor one that somebody has undefined."""
        return self.plan.persistent and not self.facts.undefined

    def round_of(self, disk: DiskMove) -> int | None:
        """The round whose overlay is active at the source now; None before the freeze."""
        active = self.host.active_image(self.uuid, disk.target)
        if not isinstance(active, Path):
            return None
        found = overlay_in(active.name)
        return found.round if found and active == self.overlay(disk, found.round) else None

    def paths(self) -> dict[Path, Path]:
        """Old place to new place of every file that moves."""
        moved = {image.source: image.destination for image in self.plan.images}
        files = {s: d for s, d in moved.items() if isinstance(s, Path) and isinstance(d, Path)}
        return files | self.file_paths()

    def changes(self, disks: Mapping[str, Placed]) -> Changes:
        """What is another at the destination once these are the active images."""
        return Changes(disks, self.file_paths(), self.plan.networks, self.plan.media)

    def file_paths(self) -> dict[Path, Path]:
        return {file.source: file.destination for file in self.plan.files}


def from_served(source: Place, transfer: DiskTransfer) -> DiskTransfer:
    """The same transfer for the host that it goes to, of what another one serves."""
    there = transfer.destination
    return replace(transfer, source=source, destination=Place(str(there)) if isinstance(there, Path) else there)


def file_of(where: Where) -> Path:
    """What the plan says is a file."""
    if isinstance(where, Url):
        raise TypeError(f"{where} is no file")
    return where


def power_of(host: Host, uuid: str) -> Power:
    """Of a VM that is not known there: off."""
    try:
        return host.power(uuid)
    except NoSuchVm:
        return Power.OFF


def known(host: Host, uuid: str) -> bool:
    """Also of a VM that only runs."""
    try:
        host.power(uuid)
    except NoSuchVm:
        return False
    return True


class Step:
    """One thing that a job does, that it can put back, and of which it can tell whether it took effect.

    It keeps nothing in itself. `do` and `undo` may each be called twice, or after being cut off half way.
    """

    says: str = ""
    may_stand: ClassVar[bool] = False
    """A person may have the job stand still in it: its `do` is cut off by Suspended, and done again."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def do(self, job: Job) -> None:
        raise NotImplementedError

    def undo(self, job: Job) -> None:
        """Nothing to put back, unless a step says otherwise."""

    def found(self, job: Job) -> bool:
        """Has `do` taken full effect? False when in doubt: `do` can be repeated."""
        return False

    def crossed(self, job: Job) -> bool:
        """Asked of the point of no return only: has any part of it taken effect?"""
        return self.found(job)

    def overtaken(self, job: Job) -> bool:
        """Asked of steps before that one: has somebody else made the way back one that loses writes?"""
        return False
