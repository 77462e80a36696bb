"""Saved states of one VM: memory written while the guest runs (under KVM), loaded standing, spent once."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import libvirt

from vmferry import durable
from vmferry.errors import HostRefused, VmferryError
from vmferry.hosts.libvirt import definition, domain_xml, files, inspect, start
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.model import Changes, Lack, Power
from vmferry.transfer import CHUNK, Watch

_COMPLETE = b"LibvirtQemudSave"
"""The first bytes of a complete saved state; libvirt writes them last ("...Part" until then)."""
_HEADER = struct.Struct("=16sIIII")
"""The magic, the version, the length of the XML, whether the guest ran, and how the memory is written."""
_APPENDED = range(5)
"""Ways of writing that only append: raw, gzip, bzip2, xz and lzop. Later ones put each page in a place of its own."""
_BEGUN = 1 << 20
"""Bytes of the file at which QEMU writes memory: the XML takes less."""
_BEGIN_POLL_S, _SAVE_POLL_S = 0.005, 0.05
_SAVE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_HALT | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
_PAUSED_BY_HAND = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT]
"""What `virsh suspend` makes of a guest while libvirt takes a snapshot of its memory."""
_ROOM = 256 << 20
"""Bytes; a saved state larger than 1.5 times the memory and this does not converge: the guest dirties too fast."""


def spent_name(memory: Path) -> Path:
    return memory.with_name(f"{memory.name}.spent")


def settled_bytes(memory: Path) -> int:
    """Return how many bytes of a saved state being written stay as they are, in whole chunks, the first one aside."""
    try:
        with memory.open("rb") as file:
            _, _, _, _, way = _HEADER.unpack(file.read(_HEADER.size))
            size = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, struct.error):
        return 0
    return size // CHUNK * CHUNK if way in _APPENDED else 0


class _Pace:
    """Keeps a save to a rate, and puts the rate back, which libvirt would keep for what comes after.

    libvirt lifts the rate as the save begins. A call for more than a look before that waits until the save's end, even
    where it is allowed soon after: so nothing is asked before memory is written.
    """

    def __init__(self, link: LibvirtConnection, uuid: str, bytes_s: int | None) -> None:
        self._link = link
        self._uuid = uuid
        self._mib_s = max(1, bytes_s >> 20) if bytes_s else None
        self._before: int | None = None

    @property
    def due(self) -> bool:
        """Is libvirt still to be given the rate?"""
        return self._mib_s is not None and self._before is None

    def keep(self, written_bytes: int) -> None:
        """Give libvirt the rate, once memory is written."""
        if self._mib_s is not None and self._before is None and written_bytes > _BEGUN:
            self._before = self._tell(self._mib_s)

    def lift(self) -> None:
        """Put the rate back to what it was before, for good."""
        if self._before is not None:
            self._tell(self._before)
        self._mib_s = self._before = None

    def _tell(self, mib_s: int) -> int | None:
        """Set the rate. Returns the rate before; None where the save is over, and the VM perhaps gone with it."""

        def act(conn: libvirt.virConnect) -> int:
            domain = conn.lookupByUUIDString(self._uuid)
            before = int(domain.migrateGetMaxSpeed())
            domain.migrateSetMaxSpeed(mib_s)
            return before

        with contextlib.suppress(HostRefused):
            return self._link.call("limit its rate", act)
        return None


class SavedState:
    def __init__(self, link: LibvirtConnection, uuid: str, memory: Path) -> None:
        self._link = link
        self._uuid = uuid
        self._memory = memory

    def save(self, watch: Watch, bytes_s: int | None) -> bool:
        """Write the VM's memory, while the guest runs if it may, then stop it for good; cancelling lets it run on.

        Returns whether a person was seen to pause it while it ran.
        """
        durable.remove(self._memory)
        self._link.forget_stop(self._uuid)
        root = self._link.call("read its XML", lambda c: domain_xml.parse(self._domain(c).XMLDesc(0)))
        targets = [domain_xml.target_of(disk) for disk in domain_xml.disks(root)]
        xml = domain_xml.snapshot_xml(targets, {}, self._memory)
        precopy = inspect.may_precopy(root)
        flags = _SAVE | (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE if precopy else 0)
        pace = _Pace(self._link, self._uuid, bytes_s if precopy else None)
        failed: list[VmferryError] = []

        def act() -> None:
            try:
                self._link.call_long("save its memory", lambda c: self._domain(c).snapshotCreateXML(xml, flags))
            except VmferryError as error:
                failed.append(error)

        saving = threading.Thread(target=act, name=f"save {self._uuid}")
        saving.start()
        threading.Thread(target=self._keep_flushed, args=(saving,), name=f"flush {self._uuid}", daemon=True).start()
        try:
            paused = self._see_through(saving, watch, pace, runs=precopy)
        except VmferryError:
            self._give_up(saving)
            raise
        finally:
            pace.lift()
        if failed:
            raise failed[0]
        return paused

    def complete(self, newest_disk_write: float) -> bool:
        """Is the state complete, and no disk written after it (Unix time), so that loading it loses nothing?"""
        try:
            with self._memory.open("rb") as file:
                whole = file.read(len(_COMPLETE)) == _COMPLETE
            return whole and newest_disk_write <= self._memory.stat().st_mtime
        except FileNotFoundError:
            return False

    def restore(self, changes: Changes) -> tuple[str, ...]:
        """Load the state with the guest paused. Returns what was left out since its files are gone, discs for one."""

        def act(conn: libvirt.virConnect) -> tuple[str, ...]:
            root = self.root(conn)
            for disk in domain_xml.disks(root):
                domain_xml.forget_below(disk)  # what lies below may have become less: read it from the headers
            definition.apply(root, changes)
            ejected = start.leave_out_gone(root)
            self._name_as_saved(conn, root)
            conn.restoreFlags(str(self._memory), domain_xml.text(root), libvirt.VIR_DOMAIN_SAVE_PAUSED)
            return ejected

        files.read_ahead(self._memory)
        return self._link.call_long("restore its memory", act)

    def _name_as_saved(self, conn: libvirt.virConnect, root: domain_xml.Element) -> None:
        """Give a VM that was renamed since its save its name back: libvirt loads no memory for one of another name."""
        name = root.findtext("name", "")
        with contextlib.suppress(libvirt.libvirtError):  # of a transient VM, or a name that is taken, libvirt tells
            domain = conn.lookupByUUIDString(self._uuid)
            if domain.name() != name and not domain.isActive():
                domain.rename(name)

    def lacks(self, changes: Changes) -> Sequence[Lack]:
        """Return what keeps libvirt from loading the state here; discs that are gone do not."""

        def act(conn: libvirt.virConnect) -> Sequence[Lack]:
            root = self.root(conn)
            definition.apply(root, changes)
            found = start.of_xml(conn, root, name=root.findtext("name", ""), runs=True)
            return start.needed_to_load(found)

        return self._link.call("look at what its memory needs", act)

    def root(self, conn: libvirt.virConnect) -> domain_xml.Element:
        """Return the XML of the VM as it ran when it was saved."""
        xml = conn.saveImageGetXMLDesc(str(self._memory), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
        return domain_xml.parse(xml)

    def define(self) -> None:
        """Define the VM as it ran when it was saved; libvirt drops by itself all that belongs to a running VM only."""
        self._link.call("define it again", lambda c: c.defineXML(domain_xml.text(self.root(c))))

    def release(self, *, run: bool) -> float:
        """Spend the state, then let the guest run with `run`. Returns how long the guest stood still, in seconds."""
        stopped = self._stopped_at()
        if durable.there(self._memory):
            self._memory.rename(spent_name(self._memory))
            durable.sync_folder(self._memory.parent)
        if run:
            self._link.call("let it run", self._resume)
        return max(0.0, time.time() - stopped) if stopped is not None else 0.0

    def _resume(self, conn: libvirt.virConnect) -> None:
        domain = self._domain(conn)
        if inspect.power(domain) is Power.PAUSED:
            domain.resume()

    def _stopped_at(self) -> float | None:
        """Return when the guest stopped (Unix time), by QEMU's own event; None if that cannot be told.

        After a restart of ours it is the time when the state was complete, 30 ms later.
        """
        seen = self._link.stopped_at(self._uuid)
        if seen is not None:
            return seen
        for name in (self._memory, spent_name(self._memory)):
            if durable.there(name):
                return name.stat().st_mtime
        return None

    def _see_through(self, saving: threading.Thread, watch: Watch, pace: _Pace, *, runs: bool) -> bool:
        """Follow a save to its end; return whether somebody else paused it. `runs`: it does until memory is written."""
        memory_bytes = self._link.call("look", lambda c: self._domain(c).maxMemory() * 1024)
        standing = paused = False
        while saving.is_alive():
            saving.join(_BEGIN_POLL_S if pace.due else _SAVE_POLL_S)
            watch.check()
            definition = files.allocated(self._memory)
            if saving.is_alive():
                pace.keep(definition)
            if definition > memory_bytes:
                pace.lift()  # the guest changes it as fast as it is written
            if not standing and definition > 1.5 * memory_bytes + _ROOM:
                standing = True  # let the rest be written with the guest standing
                self._link.call("pause it", lambda c: self._domain(c).suspend())
            paused = paused or (runs and not standing and self._was_paused())
        return paused

    def _was_paused(self) -> bool:
        """Was the VM paused by a person? For what QEMU stops by itself at the end libvirt gives no such reason."""
        with contextlib.suppress(HostRefused):
            state: list[int] = self._link.call("look", lambda c: self._domain(c).state())
            return state == _PAUSED_BY_HAND
        return False

    def _keep_flushed(self, saving: threading.Thread) -> None:
        """Sync the file all along: libvirt syncs it at the end, with the guest standing (3.8 s became 0.7 s)."""
        while saving.is_alive():
            with contextlib.suppress(OSError):
                fd = os.open(self._memory, os.O_RDONLY)
                try:
                    os.fdatasync(fd)
                finally:
                    os.close(fd)
            saving.join(0.02)

    def _give_up(self, saving: threading.Thread) -> None:
        with contextlib.suppress(HostRefused):  # it may have ended meanwhile: undo finds what became of it
            self._link.call("stop saving", lambda c: self._domain(c).abortJob())
        saving.join()

    def _domain(self, conn: libvirt.virConnect) -> libvirt.virDomain:
        return conn.lookupByUUIDString(self._uuid)
