"""A running VM's disks: snapshots, commits and mirrors, through libvirt's block jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import libvirt

from vmferry import durable
from vmferry.errors import GuestGone, HostRefused, NoSuchVm, StartedOnOverlay, VmHeld
from vmferry.hosts.libvirt import domain_xml, inspect, stale_state
from vmferry.hosts.libvirt.connection import LibvirtConnection, until
from vmferry.hosts.libvirt.guest_agent import GuestAgent
from vmferry.hosts.libvirt.qemu_process import started_on
from vmferry.hosts.records import Quiesced
from vmferry.model import Placed, Power, Where
from vmferry.transfer import Watch

T = TypeVar("T")
_FREEZE = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
)
_MIRROR = (
    libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW
    | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    # Never SYNCHRONOUS_WRITES here: the destination has no backing file until the pivot, so of an image that has one
    # a guest write smaller than a cluster would fill the rest of it with zeros (seen: 2 to 9 writes of 1,400 lost).
)
_WHOLE = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
_GIVEN_UP = "QEMU gave it up, or somebody ended it: is there room, and no error, in the image below?"
_CRASHES = frozenset({"ide", "sata"})


class RunningDisks:
    """The disks of one running or paused VM."""

    def __init__(self, link: LibvirtConnection, uuid: str) -> None:
        self._link = link
        self._uuid = uuid

    def freeze(self, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        """Switch these disks to overlays in one atomic snapshot; overlays that a cut-off call left are made anew.

        Returns whether file systems were frozen with them: with `quiesce_s` UNSURE where the disks are on the overlays
        already. Raises HostRefused where the VM lacks one of the disks.
        """
        active = {self.active(target) for target in overlays}
        if active == set(overlays.values()):
            return Quiesced.NO if quiesce_s is None else Quiesced.UNSURE
        for overlay in overlays.values():
            if overlay not in active:
                durable.remove(overlay)
        targets = self._targets()
        if gone := [target for target in overlays if target not in targets]:
            raise HostRefused(host=self._link.uri, action="freeze the disks", reason=f"it has no disk {gone[0]} now")
        xml = domain_xml.snapshot_xml(targets, overlays, None)
        quiesced = Quiesced.NO if quiesce_s is None else self._quiesced(xml, quiesce_s)
        if quiesced is not Quiesced.YES:
            self._call("freeze the disks", lambda d: d.snapshotCreateXML(xml, _FREEZE))
        return quiesced

    def _quiesced(self, xml: str, seconds: float) -> Quiesced:
        """Take the snapshot with file systems frozen by the guest agent, if it answers in time; NO if not.

        libvirt 9.0 gives up on an agent that is late and does not thaw: seen to freeze the guest for good when the
        agent carried out the command later. So an agent that does not answer is not asked to freeze, and one that is
        late after that gives UNSURE.
        """
        agent = GuestAgent(self._link, self._uuid)
        if not agent.answers(seconds):
            return Quiesced.NO
        flags = _FREEZE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
        try:
            with agent.waited_for(seconds):
                self._call("freeze the file systems and the disks", lambda d: d.snapshotCreateXML(xml, flags))
        except VmHeld:
            raise  # it told the agent nothing
        except HostRefused:
            return Quiesced.UNSURE
        return Quiesced.YES

    def active(self, target: str) -> Where | None:
        disk = self._element(target)
        return None if disk is None else domain_xml.source_where(disk)

    def merge(self, target: str, first: int, last: int, watch: Watch) -> None:
        """Merge the images of a chain from `first` on, 0 being the active one, into that at `last`; those above stay.

        A merge of the active image goes on from whatever part of it is done already.
        """
        if first:
            self._merge_within(target, first, last, watch)
            return
        if self.job(target) is None:
            self._begin_commit(target, self._layer(target, last))
        until(lambda: self._ready(target), look_s=0.01, each=watch.check)
        with self._standing(target):
            self.pivot(target)

    def _merge_within(self, target: str, first: int, last: int, watch: Watch) -> None:
        top, base, before = self._layer(target, first), self._layer(target, last), self._depth(target)
        self._call(f"merge {top}", lambda d: d.blockCommit(target, base, top, 0, 0))
        until(lambda: not self._busy(target), look_s=0.01, each=watch.check)
        if self._depth(target) >= before:
            raise HostRefused(host=self._link.uri, action=f"merge {top}", reason=_GIVEN_UP)

    def _depth(self, target: str) -> int:
        disk = self._element(target)
        return 0 if disk is None else len(list(disk.iter("backingStore")))

    def _busy(self, target: str) -> bool:
        return bool(self._call(f"look at {target}", lambda d: d.blockJobInfo(target, 0)))

    def _layer(self, target: str, number: int) -> str:
        """Return libvirt's name for an image of the disk's chain by its number, as vda[3]. Raises HostRefused."""
        at = self._element(target)
        for _ in range(number):
            at = None if at is None else at.find("backingStore")
        if at is None or not at.get("index"):
            raise HostRefused(host=self._link.uri, action=f"merge {target}", reason="its chain has just changed")
        return f"{target}[{at.get('index')}]"

    def copy_whole(self, target: str, base: Placed, watch: Watch) -> None:
        """Copy all that the guest sees of a disk into an image that exists, and make that the active one."""
        if self.job(target) is None:
            self._call(f"copy {target}", lambda d: d.blockCopy(target, domain_xml.mirror_xml(base), {}, _WHOLE))
        until(lambda: self._ready(target), look_s=0.01, each=watch.check)
        with self._standing(target):
            self.pivot(target)

    def _begin_commit(self, target: str, base: str) -> None:
        """Begin to merge the active image into `base`. Raises StartedOnOverlay where that is why QEMU may not write it.

        AppArmor's profile of a QEMU denies it to write what lay below its disks when it was started; libvirt before
        12.1 cannot take that back.
        """
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        try:
            self._call(f"merge {target}", lambda d: d.blockCommit(target, base, None, 0, flags))
        except VmHeld:
            raise
        except HostRefused as refused:
            active = self.active(target)
            if isinstance(active, Path) and started_on(active):
                raise StartedOnOverlay(
                    host=self._link.uri, vm=self._name(), path=active, reason=refused.fields["reason"]
                ) from refused
            raise

    def _vm(self) -> str:
        """Return the VM's name, or its UUID where libvirt does not know it any more."""
        try:
            return self._name()
        except (HostRefused, NoSuchVm):
            return self._uuid

    def _name(self) -> str:
        return self._link.call("look at it", lambda conn: str(conn.lookupByUUIDString(self._uuid).name()))

    @contextmanager
    def _standing(self, target: str) -> Iterator[None]:
        """Pause a running guest within, if the disk is on IDE or SATA.

        QEMU 7.2 crashes when such a disk is written to in the instant of a commit's pivot (decision 0027). A process
        that is killed within leaves the guest paused; the step that asked lets it go on.
        """
        if self._bus(target) not in _CRASHES or self._power() is not Power.RUNNING:
            yield
            return
        self._call("stand it still", lambda d: d.suspend())
        try:
            yield
        finally:
            self._call("let it go on", lambda d: d.resume())

    def mirror(self, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        if self.job(target) is not None:
            if not self._mirrors_to(target, destination):
                raise HostRefused(host=self._link.uri, action=f"mirror {target}", reason="somebody else's mirror runs")
            flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
            self._call(f"limit the mirror of {target}", lambda d: d.blockJobSetSpeed(target, limit_bytes_s or 0, flags))
            return
        parameters = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: limit_bytes_s} if limit_bytes_s else {}
        xml = domain_xml.mirror_xml(destination)
        self._call(f"mirror {target}", lambda d: d.blockCopy(target, xml, parameters, _MIRROR))

    def mirrored(self, target: str) -> tuple[bool, int, int]:
        info = self._call(f"look at the mirror of {target}", lambda d: d.blockJobInfo(target, 0))
        mirror = self._mirror(target)
        if not info or mirror is None:
            raise HostRefused(host=self._link.uri, action=f"mirror {target}", reason="the mirror has ended")
        return _is_ready(mirror), info["cur"], info["end"]

    def pivot(self, target: str) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self._call(f"switch {target}", lambda d: d.blockJobAbort(target, flags))
        until(lambda: self.job(target) is None, look_s=0.01)

    def _mirrors_to(self, target: str, destination: Placed) -> bool:
        mirror = self._mirror(target)
        return mirror is not None and domain_xml.source_where(mirror) == destination.path

    def end_mirror(self, target: str, destination: Placed) -> None:
        if self.job(target) == "copy" and self._mirrors_to(target, destination):
            self._call(f"end the mirror of {target}", lambda d: d.blockJobAbort(target, 0))
            until(lambda: self.job(target) is None)

    def job(self, target: str) -> str | None:
        """Return the kind of mirror that runs on the disk, copy or active-commit; None if there is none."""
        mirror = self._mirror(target)
        return None if mirror is None else mirror.get("job", "copy")

    def _ready(self, target: str) -> bool:
        mirror = self._mirror(target)
        if mirror is None:
            raise HostRefused(host=self._link.uri, action=f"merge {target}", reason=_GIVEN_UP)
        return _is_ready(mirror)

    def _mirror(self, target: str) -> domain_xml.Element | None:
        disk = self._element(target)
        return None if disk is None else disk.find("mirror")

    def _element(self, target: str) -> domain_xml.Element | None:
        root = domain_xml.parse(self._call("read its XML", lambda d: d.XMLDesc(0)))
        return next((d for d in domain_xml.disks(root) if domain_xml.target_of(d) == target), None)

    def _bus(self, target: str) -> str:
        disk = self._element(target)
        found = None if disk is None else disk.find("target")
        return "" if found is None else found.get("bus", "")

    def _targets(self) -> list[str]:
        root = domain_xml.parse(self._call("read its XML", lambda d: d.XMLDesc(0)))
        return [domain_xml.target_of(d) for d in domain_xml.disks(root)]

    def _call(self, action: str, act: Callable[[libvirt.virDomain], T]) -> T:
        """Return what `act` does with the VM's domain. Raises GuestGone when refused because the guest has stopped."""
        try:
            return self._link.call(action, lambda conn: act(conn.lookupByUUIDString(self._uuid)))
        except HostRefused:
            if self._off():
                raise GuestGone(vm=self._vm()) from None
            raise

    def _off(self) -> bool:
        try:
            return self._power() is Power.OFF
        except VmHeld:
            raise  # it runs, whatever libvirt says
        except HostRefused:
            return True

    def _power(self) -> Power:
        def act(conn: libvirt.virConnect) -> Power:
            domain = conn.lookupByUUIDString(self._uuid)
            stale_state.check(self._link.uri, domain)
            return inspect.power(domain)

        return self._link.call("look", act)


def _is_ready(mirror: domain_xml.Element) -> bool:
    """Is the mirror ready? QEMU reports cur == end before it is: only this attribute tells."""
    return mirror.get("ready") == "yes"
