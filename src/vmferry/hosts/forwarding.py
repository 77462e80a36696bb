"""A host whose every method goes to one place: to another machine, or nowhere any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmferry.hosts.interface import DiskTransfer
from vmferry.hosts.records import Fold, GuestClock, Prefix, Quiesced
from vmferry.model import Changes, Definition, Finding, Folder, Lack, Load, Placed, Power, Vm, Volume, Where
from vmferry.model.chains import DiskChain
from vmferry.model.files import FileEntry, FileUser
from vmferry.model.processors import Cpu, CpuFit, Guests, Platform, VmNeeds
from vmferry.model.vms import FolderUse
from vmferry.transfer import Compared, Copied, Place, Watch


class ForwardingHost:
    """Implements hosts.interface.Host by passing every method to `forward`, which a subclass defines."""

    name: str

    def forward(self, method: str, /, *arguments: object, **named: object) -> Any:
        """Carry out this method of the interface with these arguments, and return its answer."""
        raise NotImplementedError

    # -- vms

    def vms(self) -> Sequence[Vm]:
        answer: Sequence[Vm] = self.forward("vms")
        return answer

    def vm(self, name: str) -> Vm:
        answer: Vm = self.forward("vm", name)
        return answer

    def power(self, uuid: str) -> Power:
        answer: Power = self.forward("power", uuid)
        return answer

    def run_of(self, uuid: str) -> str:
        answer: str = self.forward("run_of", uuid)
        return answer

    def defined(self, uuid: str) -> bool:
        answer: bool = self.forward("defined", uuid)
        return answer

    def definition(self, uuid: str) -> Definition:
        answer: Definition = self.forward("definition", uuid)
        return answer

    def definition_now(self, uuid: str) -> Definition:
        answer: Definition = self.forward("definition_now", uuid)
        return answer

    def lacks_to_start(self, uuid: str) -> Sequence[Lack]:
        answer: Sequence[Lack] = self.forward("lacks_to_start", uuid)
        return answer

    def refusal(self, definition: Definition, changes: Changes) -> str:
        answer: str = self.forward("refusal", definition, changes)
        return answer

    def suspend(self, uuid: str) -> bool:
        answer: bool = self.forward("suspend", uuid)
        return answer

    def resume(self, uuid: str) -> None:
        self.forward("resume", uuid)

    def thaw(self, uuid: str, seconds: float) -> bool:
        answer: bool = self.forward("thaw", uuid, seconds)
        return answer

    def set_clock(self, uuid: str, stood_s: float, seconds: float) -> GuestClock | None:
        answer: GuestClock | None = self.forward("set_clock", uuid, stood_s, seconds)
        return answer

    def point(
        self,
        uuid: str,
        disks: Mapping[str, Placed],
        files: Mapping[Path, Path],
        sources: Mapping[str, Sequence[Where]],
    ) -> Sequence[str]:
        answer: Sequence[str] = self.forward("point", uuid, disks, files, sources)
        return answer

    def rewrite_snapshots(self, uuid: str, paths: Mapping[Path, Path]) -> None:
        self.forward("rewrite_snapshots", uuid, paths)

    def forget_checkpoints(self, uuid: str) -> None:
        self.forward("forget_checkpoints", uuid)

    def recall_checkpoints(self, definition: Definition) -> None:
        self.forward("recall_checkpoints", definition)

    def drop_checkpoints(self, definition: Definition) -> None:
        self.forward("drop_checkpoints", definition)

    def make_persistent(self, uuid: str) -> None:
        self.forward("make_persistent", uuid)

    def make_transient(self, uuid: str) -> None:
        self.forward("make_transient", uuid)

    # -- disks

    def active_image(self, uuid: str, target: str) -> Where:
        answer: Where = self.forward("active_image", uuid, target)
        return answer

    def chains(self, uuid: str, memory: Path | None = None) -> Sequence[DiskChain] | None:
        answer: Sequence[DiskChain] | None = self.forward("chains", uuid, memory)
        return answer

    def users(self, path: Where) -> tuple[str, ...]:
        answer: tuple[str, ...] = self.forward("users", path)
        return answer

    def volume(self, where: Where) -> Volume | None:
        answer: Volume | None = self.forward("volume", where)
        return answer

    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        answer: Quiesced = self.forward("freeze", uuid, overlays, quiesce_s)
        return answer

    def unfreeze(
        self,
        uuid: str,
        target: str,
        overlays: Sequence[Path],
        base: Placed,
        watch: Watch,
        memory: Path | None = None,
        *,
        unmerged: bool = False,
    ) -> Placed:
        answer: Placed = self.forward("unfreeze", uuid, target, overlays, base, watch, memory, unmerged=unmerged)
        return answer

    def mirror(self, uuid: str, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        self.forward("mirror", uuid, target, destination, limit_bytes_s)

    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        answer: tuple[bool, int, int] = self.forward("mirrored", uuid, target)
        return answer

    def mirroring(self, uuid: str, target: str) -> bool:
        answer: bool = self.forward("mirroring", uuid, target)
        return answer

    def pivot(self, uuid: str, target: str) -> None:
        self.forward("pivot", uuid, target)

    def end_mirror(self, uuid: str, target: str, destination: Placed) -> None:
        self.forward("end_mirror", uuid, target, destination)

    # -- memory

    def save(self, uuid: str, memory: Path, watch: Watch, bytes_s: int | None = None) -> bool:
        answer: bool = self.forward("save", uuid, memory, watch, bytes_s)
        return answer

    def saved(self, uuid: str, memory: Path) -> bool:
        answer: bool = self.forward("saved", uuid, memory)
        return answer

    def define_saved(self, uuid: str, memory: Path) -> None:
        self.forward("define_saved", uuid, memory)

    def restore(self, uuid: str, memory: Path, changes: Changes) -> Sequence[str]:
        answer: Sequence[str] = self.forward("restore", uuid, memory, changes)
        return answer

    def lacks_to_load(self, uuid: str, memory: Path, changes: Changes) -> Sequence[Lack]:
        answer: Sequence[Lack] = self.forward("lacks_to_load", uuid, memory, changes)
        return answer

    def release(self, uuid: str, memory: Path, *, run: bool) -> float:
        answer: float = self.forward("release", uuid, memory, run=run)
        return answer

    def spent(self, memory: Path) -> bool:
        answer: bool = self.forward("spent", memory)
        return answer

    def renew(self, memory: Path) -> None:
        self.forward("renew", memory)

    def unload(self, uuid: str) -> None:
        self.forward("unload", uuid)

    def void(self, memory: Path) -> None:
        self.forward("void", memory)

    def standing_s(self, uuid: str) -> float:
        answer: float = self.forward("standing_s", uuid)
        return answer

    # -- files

    def folder(self, path: Path) -> Folder:
        answer: Folder = self.forward("folder", path)
        return answer

    def probe(self, folder: Path, use: FolderUse) -> Sequence[Finding]:
        answer: Sequence[Finding] = self.forward("probe", folder, use)
        return answer

    def allocated(self, path: Path) -> int:
        answer: int = self.forward("allocated", path)
        return answer

    def exists(self, path: Path) -> bool:
        answer: bool = self.forward("exists", path)
        return answer

    def entry(self, path: Path) -> FileEntry | None:
        answer: FileEntry | None = self.forward("entry", path)
        return answer

    def file_users(self, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        answer: Sequence[FileUser] = self.forward("file_users", files, folders)
        return answer

    def leftovers(self, folders: Sequence[Path]) -> Sequence[Path]:
        answer: Sequence[Path] = self.forward("leftovers", folders)
        return answer

    def mark_of(self, path: Path) -> str:
        answer: str = self.forward("mark_of", path)
        return answer

    def content_of(self, path: Path) -> str:
        answer: str = self.forward("content_of", path)
        return answer

    def unchanged_since(self, transfer: DiskTransfer) -> bool:
        answer: bool = self.forward("unchanged_since", transfer)
        return answer

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        answer: Copied = self.forward("copy", transfer, watch)
        return answer

    def compare(self, transfer: DiskTransfer, watch: Watch) -> Compared:
        answer: Compared = self.forward("compare", transfer, watch)
        return answer

    def bring(self, transfers: Sequence[DiskTransfer], watch: Watch) -> Sequence[Copied]:
        answer: Sequence[Copied] = self.forward("bring", transfers, watch)
        return answer

    def drop(self, transfer: DiskTransfer) -> None:
        self.forward("drop", transfer)

    def forget(self, transfer: DiskTransfer) -> None:
        self.forward("forget", transfer)

    def small_copy(self, source: Path, destination: Path) -> None:
        self.forward("small_copy", source, destination)

    def rebase(self, path: Path, backing: Placed) -> None:
        self.forward("rebase", path, backing)

    def fold(self, folds: Sequence[Fold]) -> None:
        self.forward("fold", folds)

    def promote(self, part: Path, final: Path) -> None:
        self.forward("promote", part, final)

    def remove(self, path: Path) -> None:
        self.forward("remove", path)

    def rename(self, path: Path, to: Path) -> None:
        self.forward("rename", path, to)

    def refresh_pools(self, folders: Sequence[Path]) -> None:
        self.forward("refresh_pools", folders)

    # -- processors

    def platform(self) -> Platform:
        answer: Platform = self.forward("platform")
        return answer

    def needs(self, uuid: str) -> VmNeeds:
        answer: VmNeeds = self.forward("needs", uuid)
        return answer

    def cpu(self, xml: str) -> Cpu:
        answer: Cpu = self.forward("cpu", xml)
        return answer

    def cpu_fit(self, xml: str, guests: Guests) -> CpuFit:
        answer: CpuFit = self.forward("cpu_fit", xml, guests)
        return answer

    def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> Cpu:
        answer: Cpu = self.forward("cpu_baseline", cpus, guests)
        return answer

    def set_cpu(self, uuid: str, xml: str | None, to: str) -> None:
        self.forward("set_cpu", uuid, xml, to)

    def load(self) -> Load:
        answer: Load = self.forward("load")
        return answer

    # -- relocation

    def serve(self, sources: Sequence[Path | Place]) -> Sequence[Place]:
        answer: Sequence[Place] = self.forward("serve", sources)
        return answer

    def serve_growing(self, uuid: str, memory: Path, beyond: int) -> Prefix | None:
        answer: Prefix | None = self.forward("serve_growing", uuid, memory, beyond)
        return answer

    def end_serving(self) -> None:
        self.forward("end_serving")

    def misses(self, definition: Definition, networks: Mapping[str, str]) -> Sequence[str]:
        answer: Sequence[str] = self.forward("misses", definition, networks)
        return answer

    def lacks(self, definition: Definition, changes: Changes) -> Sequence[Lack]:
        answer: Sequence[Lack] = self.forward("lacks", definition, changes)
        return answer

    def announce(self, definition: Definition) -> None:
        self.forward("announce", definition)

    def announced(self, uuid: str) -> bool:
        answer: bool = self.forward("announced", uuid)
        return answer

    def withdraw(self, uuid: str) -> None:
        self.forward("withdraw", uuid)

    def relinquish(self, uuid: str, *, runs: bool) -> None:
        self.forward("relinquish", uuid, runs=runs)

    def reclaim(self, definition: Definition) -> None:
        self.forward("reclaim", definition)

    def adopt(self, definition: Definition, changes: Changes) -> None:
        self.forward("adopt", definition, changes)

    def keep_definition(self, definition: Definition, changes: Changes, path: Path) -> None:
        self.forward("keep_definition", definition, changes, path)

    def clear_out(self, uuid: str) -> None:
        self.forward("clear_out", uuid)

    def receive(self, uuid: str) -> str:
        answer: str = self.forward("receive", uuid)
        return answer

    def migrate(self, uuid: str, to: str, there: Changes, watch: Watch) -> None:
        self.forward("migrate", uuid, to, there, watch)

    def arrived(self, uuid: str) -> bool:
        answer: bool = self.forward("arrived", uuid)
        return answer
