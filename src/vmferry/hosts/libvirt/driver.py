"""A host through its libvirtd, as found to work with libvirt 9.0 and QEMU 7.2."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import libvirt

from vmferry import durable
from vmferry import transfer as transfers
from vmferry.errors import NoSuchVm, SavedStateUncertain
from vmferry.hosts.fence import Fence, fenced
from vmferry.hosts.interface import DiskTransfer
from vmferry.hosts.libvirt import (
    chains,
    domain_xml,
    file_users,
    files,
    folder_probe,
    inspect,
    stale_state,
    volumes,
)
from vmferry.hosts.libvirt import cpu as processors
from vmferry.hosts.libvirt.block_jobs import RunningDisks
from vmferry.hosts.libvirt.connection import LibvirtConnection, until
from vmferry.hosts.libvirt.definitions import VmDefinitions
from vmferry.hosts.libvirt.guest_agent import GuestAgent
from vmferry.hosts.libvirt.load import read_load
from vmferry.hosts.libvirt.migration import MigrationTransport
from vmferry.hosts.libvirt.nbd_exports import Exports
from vmferry.hosts.libvirt.network_cards import link_of
from vmferry.hosts.libvirt.overlays import Overlays
from vmferry.hosts.libvirt.qemu_process import run_of
from vmferry.hosts.libvirt.relocation import LibvirtRelocation, served_by_another
from vmferry.hosts.libvirt.saved_state import SavedState, spent_name
from vmferry.hosts.records import Fold, GuestClock, Quiesced
from vmferry.model import (
    Changes,
    FencingToken,
    FileEntry,
    FileUser,
    Finding,
    Folder,
    FolderUse,
    Load,
    Placed,
    Power,
    Vm,
    Volume,
    Where,
)
from vmferry.model.chains import DiskChain
from vmferry.model.processors import Cpu, CpuFit, Guests, Platform, VmNeeds
from vmferry.qemu import img
from vmferry.qemu.places import place_of
from vmferry.transfer import Compared, Copied, Watch
from vmferry.transfer.engine.parallel import in_parallel


class LibvirtHosts:
    """Opens hosts by libvirt URI, one connection each; `exports` and `crossing` let them serve other hosts."""

    def __init__(
        self, fence: Fence, exports: Exports | None = None, crossing: MigrationTransport | None = None
    ) -> None:
        self._fence = fence
        self._exports = exports
        self._crossing = crossing
        self._links: dict[str, LibvirtConnection] = {}

    def open(self, connect: str, token: FencingToken | None = None) -> LibvirtHost:
        link = self._links.setdefault(connect, LibvirtConnection(connect))
        return LibvirtHost(link, self._fence, token, self._exports, self._crossing)


class LibvirtHost(LibvirtRelocation, VmDefinitions):
    """A host through its libvirtd; implements hosts.interface.Host, which documents the methods."""

    def __init__(
        self,
        link: LibvirtConnection,
        fence: Fence,
        token: FencingToken | None,
        exports: Exports | None = None,
        crossing: MigrationTransport | None = None,
    ) -> None:
        self.name = link.uri
        self._link = link
        self._fence = fence
        self._token = token
        self._exports = exports
        self._crossing = crossing

    def admit(self) -> None:
        if self._token is None:
            raise TypeError("this host was opened for looking only")
        self._fence.admit(self._token)

    # -- looking

    def vms(self) -> Sequence[Vm]:
        return sorted(self._link.call("list its VMs", inspect.read_vms), key=lambda vm: vm.name)

    def vm(self, name: str) -> Vm:
        def act(conn: libvirt.virConnect) -> Vm:
            domain = self._lookup(conn, name)
            stale_state.check(self.name, domain)  # before a move is planned of what is not so
            return inspect.read_vm(domain)

        return self._link.call("read the VM", act)

    def power(self, uuid: str) -> Power:
        until(lambda: not self._call(uuid, "look at its job", self._has_job))
        return self._call(uuid, "look at its state", inspect.power)

    def run_of(self, uuid: str) -> str:
        return run_of(uuid)

    def active_image(self, uuid: str, target: str) -> Where:
        disk = self._disk(uuid, target)
        where = None if disk is None else domain_xml.source_where(disk)
        return where if where is not None else Path("/")

    def chains(self, uuid: str, memory: Path | None = None) -> Sequence[DiskChain] | None:
        if memory is None:
            return self._call(uuid, "look at its disks", chains.read)
        flags = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
        xml = self._link.call("read a saved state", lambda c: c.saveImageGetXMLDesc(str(memory), flags))
        return chains.of_headers(domain_xml.parse(xml))

    def folder(self, path: Path) -> Folder:
        return files.folder(path)

    def probe(self, folder: Path, use: FolderUse) -> Sequence[Finding]:
        return folder_probe.probe(folder, use, self._link.call("look whom QEMU runs as", processors.other_user))

    def volume(self, where: Where) -> Volume | None:
        return volumes.look(where)

    def allocated(self, path: Path) -> int:
        return files.allocated(path)

    def exists(self, path: Path) -> bool:
        return durable.lies(path)

    def entry(self, path: Path) -> FileEntry | None:
        return files.entry(path)

    def users(self, path: Where) -> tuple[str, ...]:
        return self._link.call("look who uses an image", lambda c: file_users.vms_using(c, path))

    def file_users(self, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        return self._link.call("look who needs a file", lambda c: file_users.file_users(c, files, folders))

    def leftovers(self, folders: Sequence[Path]) -> Sequence[Path]:
        return files.leftovers(folders)

    # -- processors

    def platform(self) -> Platform:
        return self._link.call("look at its processor", lambda c: processors.platform(c, self.name))

    def needs(self, uuid: str) -> VmNeeds:
        return self._link.call("read the VM", lambda c: processors.needs(c, self._lookup(c, uuid)))

    def cpu(self, xml: str) -> Cpu:
        return self._link.call("read a CPU", lambda c: processors.read(c, xml))

    def cpu_fit(self, xml: str, guests: Guests) -> CpuFit:
        return self._link.call("compare a CPU", lambda c: processors.fit(c, xml, guests))

    def cpu_baseline(self, cpus: Sequence[str], guests: Guests) -> Cpu:
        return self._link.call("find the common CPU", lambda c: processors.baseline(c, cpus, guests))

    @fenced
    def set_cpu(self, uuid: str, xml: str | None, to: str) -> None:
        with self._link.redefining:
            self._link.call("change its CPU", lambda c: processors.set_cpu(c, uuid, xml, to))

    def load(self) -> Load:
        load = self._link.call("look at its load", read_load)
        if self._exports is None:
            return load
        front = self._exports.front
        return replace(load, link=link_of(front.address, front.link_bytes_s))

    # -- files

    @fenced
    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        with _held(transfer), served_by_another(transfer), self._reading(transfer) as reading:
            return transfers.copy(reading, watch)

    @fenced
    def compare(self, transfer: DiskTransfer, watch: Watch) -> Compared:
        with _held(transfer), served_by_another(transfer), self._reading(transfer) as reading:
            return transfers.compare(reading, watch)

    @fenced
    def bring(self, transfers: Sequence[DiskTransfer], watch: Watch) -> Sequence[Copied]:
        return in_parallel([partial(self._brought, transfer) for transfer in transfers], watch)

    def _brought(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        copied = self.copy(transfer, watch)
        self.compare(transfer, watch)
        if transfer.grows:
            files.read_ahead(place_of(transfer.destination).path)  # a guest's memory: it is loaded soon
        return copied

    @fenced
    def drop(self, transfer: DiskTransfer) -> None:
        transfers.drop(transfer)

    @fenced
    def forget(self, transfer: DiskTransfer) -> None:
        transfers.forget(transfer)

    @fenced
    def small_copy(self, source: Path, destination: Path) -> None:
        files.small_copy(source, destination)

    @fenced
    def rebase(self, path: Path, backing: Placed) -> None:
        img.rebase(path, backing)

    @fenced
    def promote(self, part: Path, final: Path) -> None:
        durable.promote(part, final)

    @fenced
    def remove(self, path: Path) -> None:
        durable.remove(path)
        durable.remove(spent_name(path))

    @fenced
    def rename(self, path: Path, to: Path) -> None:
        durable.promote(path, to)

    @fenced
    def fold(self, folds: Sequence[Fold]) -> None:
        with ThreadPoolExecutor(max(1, len(folds))) as pool:
            for folded in [pool.submit(img.commit, top, base) for top, base in folds if durable.there(top)]:
                folded.result()

    def unchanged_since(self, transfer: DiskTransfer) -> bool:
        return transfers.unchanged(transfer)

    # -- a running VM's disks

    @fenced
    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        self.power(uuid)  # a snapshot that a killed worker asked for may be under way, and make the overlays yet
        return RunningDisks(self._link, uuid).freeze(overlays, quiesce_s)

    @fenced
    def thaw(self, uuid: str, seconds: float) -> bool:
        return self.power(uuid) is Power.OFF or GuestAgent(self._link, uuid).thaw(seconds)

    @fenced
    def set_clock(self, uuid: str, stood_s: float, seconds: float) -> GuestClock | None:
        return GuestAgent(self._link, uuid).set_clock(stood_s, seconds)

    @fenced
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
        ours = Overlays(self._link, uuid, target, overlays, base)
        try:
            power = self.power(uuid)
        except NoSuchVm:
            return ours.fold_detached()
        if memory is not None:
            home = ours.fold_saved(memory)
            files.renew(memory)
        else:
            home = ours.fold_off(unmerged=unmerged) if power is Power.OFF else ours.merge_live(watch)
        self.point(uuid, {target: home}, {}, {target: overlays})
        return home

    @fenced
    def mirror(self, uuid: str, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        RunningDisks(self._link, uuid).mirror(target, destination, limit_bytes_s)

    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        return RunningDisks(self._link, uuid).mirrored(target)

    def mirroring(self, uuid: str, target: str) -> bool:
        return RunningDisks(self._link, uuid).job(target) == "copy"

    @fenced
    def pivot(self, uuid: str, target: str) -> None:
        RunningDisks(self._link, uuid).pivot(target)

    @fenced
    def end_mirror(self, uuid: str, target: str, destination: Placed) -> None:
        with contextlib.suppress(NoSuchVm):
            if self.power(uuid) is not Power.OFF:
                RunningDisks(self._link, uuid).end_mirror(target, destination)

    @fenced
    def suspend(self, uuid: str) -> bool:
        if self.power(uuid) is not Power.RUNNING:
            return False
        self._call(uuid, "pause it", lambda d: d.suspend())
        return True

    @fenced
    def resume(self, uuid: str) -> None:
        if self.power(uuid) is Power.PAUSED:
            self._call(uuid, "let it run", lambda d: d.resume())

    # -- memory

    @fenced
    def save(self, uuid: str, memory: Path, watch: Watch, bytes_s: int | None = None) -> bool:
        return SavedState(self._link, uuid, memory).save(watch, bytes_s)

    def saved(self, uuid: str, memory: Path) -> bool:
        state = SavedState(self._link, uuid, memory)
        if not state.complete(0.0):
            return False
        try:
            if self.power(uuid) is not Power.OFF:
                return False
            root = domain_xml.parse(self._call(uuid, "read its XML", lambda d: d.XMLDesc(0)))
        except NoSuchVm:  # it is undefined
            root = self._link.call("read its saved state", state.root)
        written = [domain_xml.source_where(d) for d in domain_xml.disks(root) if d.find("readonly") is None]
        newest = max((p.stat().st_mtime for p in written if isinstance(p, Path) and p.is_file()), default=0.0)
        if state.complete(newest):
            return True
        raise SavedStateUncertain(vm=uuid, path=memory, job=self._token.job if self._token else "ID")

    @fenced
    def define_saved(self, uuid: str, memory: Path) -> None:
        SavedState(self._link, uuid, memory).define()

    @fenced
    def restore(self, uuid: str, memory: Path, changes: Changes) -> Sequence[str]:
        return SavedState(self._link, uuid, memory).restore(changes) if self.power(uuid) is Power.OFF else ()

    @fenced
    def release(self, uuid: str, memory: Path, *, run: bool) -> float:
        return SavedState(self._link, uuid, memory).release(run=run)

    def spent(self, memory: Path) -> bool:
        return durable.there(spent_name(memory))

    @fenced
    def renew(self, memory: Path) -> None:
        files.renew(memory)

    @fenced
    def unload(self, uuid: str) -> None:
        with contextlib.suppress(NoSuchVm):
            if self.power(uuid) is Power.PAUSED:
                self._call(uuid, "unload it", lambda d: d.destroy())

    # -- within

    def _disk(self, uuid: str, target: str) -> domain_xml.Element | None:
        root = domain_xml.parse(self._call(uuid, "read its XML", lambda d: d.XMLDesc(0)))
        return next((d for d in domain_xml.disks(root) if domain_xml.target_of(d) == target), None)

    def _has_job(self, domain: libvirt.virDomain) -> bool:
        stale_state.check(self.name, domain)  # before what asks for a lock that is never given back
        return inspect.has_job(domain)


def _held(transfer: DiskTransfer) -> AbstractContextManager[None]:
    """Keep writers off a source that is read byte for byte; a Place is guarded by the transfer itself."""
    return files.held(transfer.source) if isinstance(transfer.source, Path) else contextlib.nullcontext()
