"""Takes a job's overlays out of a disk's chain: each goes into what lies below it, and what lies on them stays.

The chain as it is decides, not what was planned: another tool may have put an image on top, or merged some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import libvirt

from vmferry import durable
from vmferry.errors import DiskHeld, GuestGone, HostRefused, MemoryElsewhere, SnapshotHeld, StillNamed, VmHeld
from vmferry.hosts.libvirt import chains, domain_xml, file_users
from vmferry.hosts.libvirt.block_jobs import RunningDisks
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.model import Placed
from vmferry.model.chains import DiskChain, Layer, runs_of
from vmferry.qemu import img
from vmferry.transfer import Watch


class Overlays:
    """A job's overlays of one disk of a VM, the newest first."""

    def __init__(self, link: LibvirtConnection, uuid: str, target: str, overlays: Sequence[Path], base: Placed) -> None:
        """`base`: what lay below the overlays when the job froze the disk."""
        self._link = link
        self._uuid = uuid
        self._target = target
        self._overlays = [str(overlay) for overlay in overlays]
        self._base = base

    # -- a VM that runs

    def merge_live(self, watch: Watch) -> Placed:
        """Merge the overlays while QEMU has them open. Returns what the disk lies on then."""
        while True:
            watch.check()
            chain = self._chain()
            if chain is None:
                return self.fold_detached()
            runs = runs_of(chain.named, self._overlays)
            if not runs:
                return self._top(chain)
            disks = RunningDisks(self._link, self._uuid)
            self._refuse_beside_others(chain, runs[0])
            first, last = self._above_snapshots(chain, runs[0])
            if last == len(chain.named):
                self._sure_it_ends(chain)
                self._into_pulled_base(disks, chain, first, watch)
            else:
                disks.merge(chain.target, first, last, watch)

    def _top(self, chain: DiskChain) -> Placed:
        """Return the image that the disk lies on, by the name that libvirt has for it: QEMU's may be cut."""
        if not chain.layers:
            return self._base
        named = chain.named[0] if chain.named and chain.named[0].startswith("/") else chain.layers[0].name
        return self._placed(replace(chain.layers[0], name=named))

    def _sure_it_ends(self, chain: DiskChain) -> None:
        """Raise HostRefused if QEMU's chain is not as long as libvirt's: more may lie below than libvirt reports."""
        if len(chain.layers) != len(chain.named):
            raise HostRefused(host=self._link.uri, action=f"merge {chain.target}", reason="its chain is not all told")

    def _chain(self) -> DiskChain | None:
        """Return the disk's chain, by whatever target it is attached now; None if it is not. Raises GuestGone."""
        found = self._link.call("look at its disks", lambda c: chains.read(c.lookupByUUIDString(self._uuid)))
        if found is None:
            raise GuestGone(vm=self._name())
        there = [chain for chain in found if runs_of(chain.named, self._overlays)]
        own = [chain for chain in found if chain.target == self._target]
        return next(iter([*there, *own]), None)

    def _refuse_beside_others(self, chain: DiskChain, run: tuple[int, int]) -> None:
        """Raise DiskHeld if another block job runs on the disk than a commit of this run.

        Such a commit is what an attempt of ours before this one began, or as good as that.
        """
        wanted = chain.named[run[1]] if run[1] < len(chain.named) else str(self._base.path)
        if chain.block_job and not (run[0] == 0 and chain.mirror == wanted):
            raise DiskHeld(host=self._link.uri, vm=self._name(), target=chain.target, kind=chain.block_job)

    def _above_snapshots(self, chain: DiskChain, run: tuple[int, int]) -> tuple[int, int]:
        """Return the part of a run that can be merged without losing a snapshot. Raises SnapshotHeld if none can."""
        holder = holder_of(chain.layers, run)
        if holder == run[0]:
            raise self._held(chain.layers[holder])
        return (run[0], holder) if holder is not None else run

    def _into_pulled_base(self, disks: RunningDisks, chain: DiskChain, first: int, watch: Watch) -> None:
        """Copy an overlay, into which somebody pulled all that lay below, whole into the base, and go on with that.

        Raises VmHeld where another image lies on the overlay.
        """
        if first:
            reason = "another image lies on it and none below it: shut the VM down when it suits"
            raise VmHeld(host=self._link.uri, action=f"merge {chain.named[first]}", reason=reason)
        disks.copy_whole(chain.target, self._base, watch)

    # -- a VM that is off

    def fold_closed(self, top: Placed) -> tuple[Placed, Layer | None]:
        """Merge the overlays below `top` while nobody has them open.

        Returns what the disk lies on then, and the overlay that holds a person's snapshot, if one does, where merging
        stops. Cut off, it is done again: a fold leaves the overlays as they are. Raises ImageToolFailed where a header
        cannot be read: a chain that is taken for shorter than it is would be put together wrong.
        """
        while True:
            layers = img.layers(top)
            runs = runs_of([layer.name for layer in layers], self._overlays)
            if not runs:
                return (top if top.path == Path(layers[0].name) else self._placed(layers[0])), None
            first, last = runs[0]
            holder = holder_of(layers, (first, last))
            if holder is not None:
                last = holder
            if last == len(layers):
                img.rebase(Path(layers[-1].name), self._base)  # somebody pulled all that lay below into it
                continue
            below = self._placed(layers[last])
            if first < last:
                img.commit(Path(layers[first].name), below)
                if first:
                    img.rebase(Path(layers[first - 1].name), below)
            top = top if first else below
            if holder is not None:
                return top, layers[holder]

    def fold_detached(self) -> Placed:
        """Merge the overlays of a disk that the VM no longer has: its newest overlay is the top.

        Returns the image that holds its content then. Raises StillNamed where another VM has the disk, and
        SnapshotHeld.
        """
        top = next((Path(overlay) for overlay in self._overlays if durable.there(Path(overlay))), None)
        if top is None:
            return self._base
        names = self._link.call("look who uses an image", lambda c: _other_users(c, top, self._uuid))
        if names:
            raise StillNamed(host=self._link.uri, path=top, users=", ".join(names))
        home, holder = self.fold_closed(Placed(top, "qcow2"))
        if holder is not None:
            raise self._held(holder)
        return home

    def fold_named(self, root: domain_xml.Element) -> tuple[Placed, Layer | None] | None:
        """Merge what a domain's XML names, and make it name what is left; None where it names no overlay of the job.

        Returns what fold_closed does.
        """
        for disk in domain_xml.disks(root):
            placed = domain_xml.placed_of(disk)
            if placed is None or not self._lies_on_ours(disk, placed):
                continue
            home, holder = self.fold_closed(placed)
            domain_xml.place(disk, home)
            return home, holder
        return None

    def fold_off(self, *, unmerged: bool = False) -> Placed:
        """Merge the overlays of a VM that is off: what its managed save names, then what its definition names.

        Where neither names one they were merged before, but for `unmerged`. Returns what the disk lies on then. Raises
        MemoryElsewhere, and SnapshotHeld once all that can be merged is.
        """
        return self._link.call("put its disks back", lambda c: self._fold_off(c, unmerged=unmerged))

    def _fold_off(self, conn: libvirt.virConnect, *, unmerged: bool) -> Placed:
        domain = conn.lookupByUUIDString(self._uuid)
        found = [self._fold_managed(domain) if domain.hasManagedSaveImage() else None, self._fold_defined(domain)]
        homes = [each for each in found if each is not None]
        if not homes:
            return (None if unmerged else self._home_already(domain)) or self.fold_detached()
        for _, holder in homes:
            if holder is not None:
                raise self._held(holder)
        return homes[0][0]

    def _home_already(self, domain: libvirt.virDomain) -> Placed | None:
        """Return what the disk lies on if its overlays were taken out before; None if they were not.

        The guest may have written to it since: the overlays are still there, and hold what it has long written over.
        """
        texts = [domain.managedSaveGetXMLDesc(0)] if domain.hasManagedSaveImage() else []
        for xml in (*texts, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)):
            for disk in domain_xml.disks(domain_xml.parse(xml)):
                placed = domain_xml.placed_of(disk)
                if placed is None:
                    continue
                below = [layer.name for layer in chains.layers_of(placed)]
                if placed.path == self._base.path or str(self._base.path) in below:
                    return placed
        return None

    def _fold_managed(self, domain: libvirt.virDomain) -> tuple[Placed, Layer | None] | None:
        root = domain_xml.parse(domain.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE))
        home = self.fold_named(root)
        if home is not None:
            domain.managedSaveDefineXML(domain_xml.text(root))
        return home

    def _fold_defined(self, domain: libvirt.virDomain) -> tuple[Placed, Layer | None] | None:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        root = domain_xml.parse(domain.XMLDesc(flags))
        named = [(disk, domain_xml.placed_of(disk)) for disk in domain_xml.disks(root)]
        ours = [placed for disk, placed in named if placed is not None and self._lies_on_ours(disk, placed)]
        if ours and saved_elsewhere(domain):
            raise MemoryElsewhere(host=self._link.uri, vm=domain.name(), path=ours[0].path)
        home = self.fold_named(root)
        if home is not None:
            domain.connect().defineXML(domain_xml.text(root))
        return home

    def fold_saved(self, memory: Path) -> Placed:
        """Merge the overlays of a VM in a saved state of the job's own. Returns what to load the state on.

        A snapshot that somebody took of the VM since, as of one that is off, lies on the overlays: it is loaded on
        that.
        """
        on_top = self._link.call("look at its definition", self._put_on_top)
        if on_top is not None:
            return self.fold_closed(on_top)[0]
        flags = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
        xml = self._link.call("read a saved state", lambda c: c.saveImageGetXMLDesc(str(memory), flags))
        folded = self.fold_named(domain_xml.parse(xml))
        if folded is not None:
            return folded[0]  # one with a snapshot in it too: the guest stands, and runs on that first
        disk = next(
            (d for d in domain_xml.disks(domain_xml.parse(xml)) if domain_xml.target_of(d) == self._target), None
        )
        placed = None if disk is None else domain_xml.placed_of(disk)
        return self.fold_detached() if placed is None else placed

    def _put_on_top(self, conn: libvirt.virConnect) -> Placed | None:
        """Return what the definition names for the disk, if it is no overlay of the job but lies on one."""
        domain = conn.lookupByUUIDString(self._uuid)
        for disk in domain_xml.disks(domain_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))):
            placed = domain_xml.placed_of(disk)
            if domain_xml.target_of(disk) != self._target or placed is None or str(placed.path) in self._overlays:
                continue
            return placed if self._lies_on_ours(disk, placed) else None
        return None

    def _lies_on_ours(self, disk: domain_xml.Element, placed: Placed) -> bool:
        """Does a disk lie on the job's overlays? Another disk may be a disc that is gone: it does not then.

        Raises ImageToolFailed where that cannot be told of the job's own disk.
        """
        if str(placed.path) in self._overlays:
            return True
        own = domain_xml.target_of(disk) == self._target
        layers = img.layers(placed) if own and _is_there(placed) else chains.layers_of(placed)
        return bool(runs_of([layer.name for layer in layers], self._overlays))

    # -- within

    def _placed(self, layer: Layer) -> Placed:
        if layer.name == str(self._base.path) or not layer.name.startswith("/"):
            return self._base
        return Placed(Path(layer.name), layer.format)

    def _held(self, layer: Layer) -> SnapshotHeld:
        snapshot = layer.snapshots[0]
        return SnapshotHeld(host=self._link.uri, vm=self._name(), path=layer.name, snapshot=snapshot)

    def _name(self) -> str:
        return self._link.call("look at it", lambda c: str(c.lookupByUUIDString(self._uuid).name()))


def holder_of(layers: Sequence[Layer], run: tuple[int, int]) -> int | None:
    """Return the number of the topmost image of a run in which a snapshot lies; None if none does."""
    return next((n for n in range(*run) if n < len(layers) and layers[n].snapshots), None)


def _other_users(conn: libvirt.virConnect, image: Path, own: str) -> list[str]:
    return [conn.lookupByUUIDString(user).name() for user in file_users.vms_using(conn, image) if user != own]


def _is_there(placed: Placed) -> bool:
    return not isinstance(placed.path, Path) or durable.there(placed.path)


def saved_elsewhere(domain: libvirt.virDomain) -> bool:
    """Was the VM's memory saved to a file that libvirt does not know any more (`virsh save`)?"""
    saved = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED]
    return bool(domain.state() == saved and not domain.hasManagedSaveImage())
