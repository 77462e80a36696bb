"""Saved states of one VM: memory written while the guest runs (under KVM), loaded standing, spent once."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import libvirt

from vmferry.errors import HostRefused, VmferryError
from vmferry.hosts import domain_xml, files, look, written
from vmferry.hosts.link import Link
from vmferry.model import Changes, Power
from vmferry.transfer import Watch

_COMPLETE = b"LibvirtQemudSave"
"""The first bytes of a complete saved state; libvirt writes them last ("...Part" until then)."""
_SAVE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_HALT | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
_ROOM = 256 << 20
"""A saved state larger than 1.5 times the memory and this does not converge: the guest dirties too fast."""


def spent_name(memory: Path) -> Path:
    return memory.with_name(f"{memory.name}.spent")


class SavedState:
    def __init__(self, link: Link, uuid: str, memory: Path) -> None:
        self._link = link
        self._uuid = uuid
        self._memory = memory

    def save(self, watch: Watch) -> None:
        """Write memory, while the guest runs if it may, then stop it for good; cancelling lets it run on."""
        files.remove(self._memory)
        self._link.forget_stop(self._uuid)
        root = self._link.call("read its XML", lambda c: domain_xml.parse(self._domain(c).XMLDesc(0)))
        targets = [domain_xml.target_of(disk) for disk in domain_xml.disks(root)]
        xml = domain_xml.snapshot_xml(targets, {}, self._memory)
        flags = _SAVE | (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE if look.may_precopy(root) else 0)
        failed: list[VmferryError] = []

        def act() -> None:
            try:
                self._link.call("save its memory", lambda c: self._domain(c).snapshotCreateXML(xml, flags))
            except VmferryError as error:
                failed.append(error)

        saving = threading.Thread(target=act, name=f"save {self._uuid}")
        saving.start()
        threading.Thread(target=self._keep_flushed, args=(saving,), name=f"flush {self._uuid}", daemon=True).start()
        try:
            self._see_through(saving, watch)
        except VmferryError:
            self._give_up(saving)
            raise
        if failed:
            raise failed[0]

    def complete(self, newest_disk_write: float) -> bool:
        """Complete, and no disk was written after it: loading it loses nothing."""
        try:
            with self._memory.open("rb") as file:
                whole = file.read(len(_COMPLETE)) == _COMPLETE
            return whole and newest_disk_write <= self._memory.stat().st_mtime
        except FileNotFoundError:
            return False

    def restore(self, changes: Changes) -> None:
        """Load it with the guest standing."""

        def act(conn: libvirt.virConnect) -> None:
            xml = conn.saveImageGetXMLDesc(str(self._memory), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
            root = domain_xml.parse(xml)
            written.apply(root, changes)
            conn.restoreFlags(str(self._memory), domain_xml.text(root), libvirt.VIR_DOMAIN_SAVE_PAUSED)

        files.read_ahead(self._memory)
        self._link.call("restore its memory", act)

    def release(self, *, run: bool) -> float:
        """Spend first, then let it run. Returns how long the guest stood still, in seconds."""
        stopped = self._stopped_at()
        if self._memory.exists():
            self._memory.rename(spent_name(self._memory))
            files.sync_folder(self._memory.parent)
        if run:
            self._link.call("let it run", self._resume)
        return max(0.0, time.time() - stopped) if stopped is not None else 0.0

    def _resume(self, conn: libvirt.virConnect) -> None:
        domain = self._domain(conn)
        if look.power(domain) is Power.PAUSED:
            domain.resume()

    def _stopped_at(self) -> float | None:
        """QEMU's own stop event; after a restart of ours the time when the state was complete, 30 ms later."""
        seen = self._link.stopped_at(self._uuid)
        if seen is not None:
            return seen
        for name in (self._memory, spent_name(self._memory)):
            if name.exists():
                return name.stat().st_mtime
        return None

    def _see_through(self, saving: threading.Thread, watch: Watch) -> None:
        memory_bytes = self._link.call("look", lambda c: self._domain(c).maxMemory() * 1024)
        standing = False
        while saving.is_alive():
            saving.join(0.05)
            watch.check()
            if not standing and files.allocated(self._memory) > 1.5 * memory_bytes + _ROOM:
                standing = True  # let the rest be written with the guest standing
                self._link.call("pause it", lambda c: self._domain(c).suspend())

    def _keep_flushed(self, saving: threading.Thread) -> None:
        """libvirt syncs the file at the end, with the guest standing: leave it little (3.8 s became 0.7 s)."""
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
