"""The toy host's calls about files, and those that only look."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vmferry.errors import CopyDiffers, DestinationExists, DestinationFull, HostUnreachable, SourceChanged
from vmferry.hosts.interface import DiskTransfer
from vmferry.hosts.records import Fold
from vmferry.hosts.simulator.calls import Caller
from vmferry.hosts.simulator.world import BLOCK, BLOCKS, Bookmark, File, Machine, World
from vmferry.model import (
    Disk,
    FileEntry,
    FileUser,
    Finding,
    Folder,
    FolderUse,
    Image,
    Load,
    NamedIn,
    Placed,
    Power,
    UserKind,
    Vm,
    Volume,
    Where,
)
from vmferry.model.chains import DiskChain, Layer
from vmferry.model.names import maker_of
from vmferry.transfer import Compared, Copied, Place, Watch

FREE = 1 << 40
MEMORY = 1 << 20


class SimulatedFiles(Caller):
    """The toy host's calls about files and those that only look, which hosts.interface documents."""

    # -- looking

    def vms(self) -> Sequence[Vm]:
        with self._look("vms") as world:
            return sorted((self._vm(world, m) for m in world.machines.values()), key=lambda vm: vm.name)

    def vm(self, name: str) -> Vm:
        with self._look("vm") as world:
            return self._vm(world, world.machine(name))

    def power(self, uuid: str) -> Power:
        with self._look("power") as world:
            return world.machine(uuid).power

    def active_image(self, uuid: str, target: str) -> Where:
        with self._look("active_image") as world:
            placed = world.machine(uuid).disks.get(target)
            return Path("/") if placed is None else placed.path

    def chains(self, uuid: str, memory: Path | None = None) -> Sequence[DiskChain] | None:
        with self._look("chains") as world:
            machine = world.machine(uuid)
            if memory is not None:
                state = world.files[memory].state
                return [_disk_chain(world, t, image.path, "") for t, image in (state.disks if state else {}).items()]
            if machine.live is None:
                return None
            mirrors = {target: str(mirror.destination.path) for target, mirror in machine.live.mirrors.items()}
            disks = machine.live.disks.items()
            return [_disk_chain(world, target, image.path, mirrors.get(target, "")) for target, image in disks]

    def folder(self, path: Path) -> Folder:
        with self._look("folder") as world:
            name = path.parts[1] if len(path.parts) > 1 else "root"
            free = 0 if name in world.full else FREE
            return Folder(path, exists=True, writable=True, free_bytes=free, filesystem=name)

    def probe(self, folder: Path, use: FolderUse) -> Sequence[Finding]:
        with self._look("probe") as world:
            return list(world.unfit)

    def volume(self, where: Where) -> Volume | None:
        with self._look("volume") as world:
            if where not in world.volumes:
                return None
            holds = "there is data in it" if world.files[where].blocks else None
            return Volume(where, BLOCKS * BLOCK, holds)

    def allocated(self, path: Path) -> int:
        with self._look("allocated") as world:
            return len(world.files[path].blocks) * BLOCK if path in world.files else 0

    def exists(self, path: Path) -> bool:
        with self._look("exists") as world:
            return path in world.files

    def entry(self, path: Path) -> FileEntry | None:
        with self._look("entry") as world:
            file = world.files.get(path)
            return None if file is None else FileEntry(path, (), len(file.blocks) * BLOCK, inode=file.inode)

    def file_users(self, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        """Return all users of these files; all images of the world count, whatever the folders."""
        with self._look("file_users") as world:
            found = [
                user for file in files for machine in world.machines.values() for user in _of_vm(world, machine, file)
            ]
            return found + [user for file in files for user in _lying_on(world, file)]

    def users(self, path: Where) -> tuple[str, ...]:
        with self._look("users") as world:
            lies = {m.uuid: [world.chain(image.path) for image in m.disks.values()] for m in world.machines.values()}
            return tuple(uuid for uuid, chains in lies.items() if any(path in chain for chain in chains))

    def leftovers(self, folders: Sequence[Path]) -> Sequence[Path]:
        with self._look("leftovers") as world:
            files = [p for p in world.files if isinstance(p, Path)]
            return sorted(p for p in files if p.parent in folders and maker_of(p.name))

    def load(self) -> Load:
        """Return the load that the world holds. This is no moment of a job: no guest writes and no hook is called."""
        with self._ground.here() as world:
            return replace(world.load, at_s=time.monotonic())

    def _vm(self, world: World, machine: Machine) -> Vm:
        disks = tuple(
            Disk(
                target,
                tuple(_image(world, path) for path in world.chain(image.path)),
                readonly=target in machine.readonly,
                block_job="copy" if machine.live and target in machine.live.mirrors else None,
            )
            for target, image in machine.disks.items()
        )
        persistent = machine.definition is not None
        snapshots = tuple(machine.snapshots)
        return Vm(
            machine.name,
            machine.uuid,
            machine.power,
            persistent,
            MEMORY,
            disks,
            machine.nvram,
            snapshots=snapshots,
            checkpoints=tuple(machine.checkpoints),
            agent=machine.agent,
        )

    # -- files

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        watch.check()
        reused = self._begin_copy(transfer)
        data = sum(self._copy_part(transfer, part, watch) for part in (0, 1))
        with self._act("copy end") as (world, _):
            mark = world.bookmarks[transfer.bookmarks]
            source = _source(world, transfer)
            if source is None or (source.changed != mark.source_changed and not transfer.grows):
                raise SourceChanged(path=transfer.source)
            mark.whole = True
            if source.state is not None:  # a guest's memory
                mark.file.state = replace(source.state)
        return Copied("direct", BLOCKS * BLOCK, data, data - reused, reused, f"root of {transfer.source}", 0.01)

    def _begin_copy(self, transfer: DiskTransfer) -> int:
        """Claim the destination, or resume this transfer's own copy. Returns the bytes that are there already."""
        with self._act("copy") as (world, middle):
            source, destination = _source(world, transfer), _end(transfer.destination)
            if source is None:
                raise self._refuse("copy", f"{transfer.source} is not there")
            mark = world.bookmarks.get(transfer.bookmarks)
            there = world.files.get(destination)
            if destination in world.volumes and there is not None and mark is None:
                return self._claim_volume(world, transfer, there, source)
            if there is not None and (mark is None or mark.file is not there):
                raise DestinationExists(path=destination)
            if destination.parts[1] in world.full:
                raise DestinationFull(path=destination)
            if there is not None and mark is not None:
                if mark.source_changed != source.changed and not transfer.grows:
                    raise SourceChanged(path=transfer.source)
                return len(mark.proved if transfer.grows else there.blocks) * BLOCK
            fresh = File(format=_format_of(transfer, source), backing=source.backing)
            mark = Bookmark(destination, fresh, source.changed)
            world.bookmarks[transfer.bookmarks] = mark
            middle()
            world.files[destination] = fresh
            return 0

    def _claim_volume(self, world: World, transfer: DiskTransfer, there: File, source: File) -> int:
        """Claim a volume: what lies on it is overwritten, with zeros where the source has no data. Returns 0."""
        there.blocks.clear()
        there.format = _format_of(transfer, source)
        there.changed += 1
        world.bookmarks[transfer.bookmarks] = Bookmark(_end(transfer.destination), there, source.changed)
        return 0

    def _copy_part(self, transfer: DiskTransfer, part: int, watch: Watch) -> int:
        """Copy every second block, those with the number's remainder `part`. Returns the bytes copied."""
        watch.check()
        with self._act("copy part") as (world, middle):
            source, copy = _source(world, transfer), world.files[_end(transfer.destination)]
            if source is None:
                raise self._refuse("copy", f"{transfer.source} is not there")
            proved = world.bookmarks[transfer.bookmarks].proved
            blocks = [block for block in source.blocks if block % 2 == part and block not in proved]
            for block in blocks[:1]:
                copy.write(block, source.blocks[block])
            middle()
            for block in blocks[1:]:
                copy.write(block, source.blocks[block])
            copied = len(blocks) * BLOCK
        watch.moved(copied * (part + 1), copied * 2, 1e6)
        return copied

    def compare(self, transfer: DiskTransfer, watch: Watch) -> Compared:
        watch.check()
        with self._act("compare") as (world, middle):
            source, copy = _source(world, transfer), world.files.get(_end(transfer.destination))
            mark = world.bookmarks.get(transfer.bookmarks)
            if source is None or copy is None or mark is None or mark.file is not copy or not mark.whole:
                raise self._refuse("compare", f"{transfer.destination} is not a finished copy of ours")
            middle()
            if source.changed != mark.source_changed and not transfer.grows:
                raise SourceChanged(path=transfer.source)
            if any(source.blocks.get(b) != copy.blocks.get(b) for b in {*source.blocks, *copy.blocks} - mark.proved):
                raise CopyDiffers(path=transfer.destination, chunks=1, tries=1)
            if transfer.grows:
                mark.proved = set(source.blocks) - {0}
            return Compared(len(copy.blocks) * BLOCK, 0, f"root of {transfer.source}", 0.01)

    def bring(self, transfers: Sequence[DiskTransfer], watch: Watch) -> Sequence[Copied]:
        """Copy and compare one transfer after another, so that the instants within can be counted."""
        brought = []
        for transfer in transfers:
            brought.append(self.copy(transfer, watch))
            self.compare(transfer, watch)
        return brought

    def drop(self, transfer: DiskTransfer) -> None:
        with self._act("drop") as (world, middle):
            mark = world.bookmarks.get(transfer.bookmarks)
            destination = _end(transfer.destination)
            if mark is not None and world.files.get(destination) is mark.file and destination not in world.volumes:
                self._remove(world, destination)
            middle()
            world.bookmarks.pop(transfer.bookmarks, None)

    def forget(self, transfer: DiskTransfer) -> None:
        with self._act("forget") as (world, _):
            world.bookmarks.pop(transfer.bookmarks, None)

    def small_copy(self, source: Path, destination: Path) -> None:
        with self._act("small_copy") as (world, _):
            world.files[destination] = File(dict(world.files[source].blocks))

    def rebase(self, path: Path, backing: Placed) -> None:
        with self._act("rebase") as (world, _):
            if world.in_use(path):
                world.violations.append(f"{path} is rebased while it is in use")
            world.files[path].backing = backing.path

    def promote(self, part: Path, final: Path) -> None:
        with self._act("promote") as (world, middle):
            source, there = world.files.get(part), world.files.get(final)
            if source is None:
                if there is None:
                    raise self._refuse("promote", f"{part} is not there")
                return
            if there is not None and there is not source:
                raise DestinationExists(path=final)
            world.files[final] = source  # a hard link, then the old name goes
            middle()
            self._remove(world, part)

    def remove(self, path: Path) -> None:
        with self._act("remove") as (world, _):
            if path in world.files:
                self._effect(world, f"remove {path}")
                self._remove(world, path)

    def rename(self, path: Path, to: Path) -> None:
        with self._act("rename") as (world, _):
            if path not in world.files and to in world.files:
                return
            if to in world.files:
                raise DestinationExists(path=to)
            world.files[to] = world.files[path]
            self._remove(world, path)

    def _remove(self, world: World, path: Path) -> None:
        if path in world.volumes:
            world.violations.append(f"the volume {path} is removed")
        if user := world.in_use(path):
            world.violations.append(f"{path} is taken away while {user} uses it")
        world.files.pop(path, None)
        world.frozen.pop(path, None)
        for machine in world.machines.values():
            if machine.live is not None and machine.live.loaded == path:
                machine.live.loaded = None  # a state that is gone is as good as spent

    def fold(self, folds: Sequence[Fold]) -> None:
        """Merge one fold after another, so that the instants within can be counted."""
        for folded in folds:
            self._fold(folded.top, folded.base)

    def _fold(self, top: Path, base: Placed) -> None:
        with self._act("fold") as (world, middle):
            if top in world.files:
                if user := world.open_in(base.path):
                    world.violations.append(f"{base.path} is folded while {user} has it open")
                world.frozen.pop(base.path, None)
                self._merge(world, top, base.path, middle)

    def _merge(self, world: World, top: Where, base: Where, middle: Callable[[], None]) -> None:
        """Write what lies above the base into it; cut off half way, reads through the top stay right."""
        above = world.chain(top)
        blocks: dict[int, int] = {}
        for path in reversed(above[: above.index(base)]):
            blocks.update(world.files[path].blocks)
        for number, (block, stamp) in enumerate(blocks.items()):
            if number == len(blocks) // 2:
                middle()
            world.files[base].write(block, stamp)

    def unchanged_since(self, transfer: DiskTransfer) -> bool:
        with self._look("unchanged_since") as world:
            mark = world.bookmarks.get(transfer.bookmarks)
            source = _source(world, transfer)
            return mark is not None and source is not None and source.changed == mark.source_changed


def _disk_chain(world: World, target: str, active: Where, mirror: str) -> DiskChain:
    chain = world.chain(active)
    layers = tuple(Layer(str(path), world.files[path].format, BLOCKS * BLOCK) for path in chain)
    return DiskChain(target, tuple(map(str, chain)), layers, mirror)


def _of_vm(world: World, machine: Machine, file: Where) -> Iterator[FileUser]:
    who, kind = f"VM {machine.name}", UserKind.VM
    parts = [(NamedIn.RUNNING, machine.live.disks if machine.live else {})]
    parts.append((NamedIn.NEXT_START, machine.definition or {}))
    for named_in, disks in parts:
        for target, image in disks.items():
            above: Path | None = None
            for path in world.below(image.path):
                if path == file:
                    yield FileUser(file, kind, who, f"disk {target}", machine.uuid, named_in, target, above)
                above = path if isinstance(path, Path) else above
    for name, snapshot in machine.snapshots.items():
        for target, path in snapshot.items():
            if path == file:
                how = f"snapshot {name}, disk {target}"
                yield FileUser(file, kind, who, how, machine.uuid, NamedIn.SNAPSHOT, target)
    if machine.nvram == file:
        yield FileUser(file, kind, who, "UEFI variables", machine.uuid, NamedIn.NEXT_START)


def _lying_on(world: World, file: Where) -> Iterator[FileUser]:
    for path, held in world.files.items():
        if held.backing == file and isinstance(path, Path):
            yield FileUser(file, UserKind.IMAGE, f"the image {path}", id=str(path), through=path)


def _end(end: Path | Place) -> Path:
    return end if isinstance(end, Path) else Path(end.at)


def _source(world: World, transfer: DiskTransfer) -> File | None:
    """Return the source, a file here or one that another host serves. Raises HostUnreachable if it no longer does."""
    end = transfer.source
    if isinstance(end, Place) and end.encrypted:
        if end.at not in world.served:
            raise HostUnreachable(host=end.shown, reason="it is not served")
        return world.served[end.at]
    return world.files.get(_end(end))


def _format_of(transfer: DiskTransfer, source: File) -> str:
    """Return the format of the copy: the source's where bytes are copied or served, else the destination's."""
    there, end = transfer.destination, transfer.source
    served = isinstance(end, Place) and end.encrypted
    return source.format if served or isinstance(there, Path) else there.format


def _image(world: World, path: Where) -> Image:
    file = world.files[path]
    backing = str(file.backing) if file.backing is not None else None
    return Image(
        path,
        file.format,
        BLOCKS * BLOCK,
        len(file.blocks) * BLOCK,
        backing,
        "qcow2" if backing else None,
        volume=path in world.volumes,
    )
