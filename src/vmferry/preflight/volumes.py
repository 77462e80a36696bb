"""Checks of a move to, or from, a volume: a device, LUN or export that exists by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from vmferry.hosts.asking import AskUsers
from vmferry.hosts.interface import Host
from vmferry.model import DiskMove, FileUser, Finding, Power, Severity, Url, Vm, Volume, listed
from vmferry.preflight.findings import blocker
from vmferry.preflight.moves import Wanted, lost_checkpoints
from vmferry.qemu.names import identity_of, whoever_asks


def of_volumes(host: Host, vm: Vm, wanted: Sequence[Wanted], ask: AskUsers, *, overwrite: bool) -> list[Finding]:
    volumes = [w.volume.where for w in wanted if w.volume]
    users = ask(host, volumes, ()) if volumes else ()
    found = [f for w in wanted if w.volume for f in _of_volume(w, w.volume, users, overwrite=overwrite)]
    found += _twice(wanted)
    found += [f for w in wanted for f in _of_overlays(vm, w)]
    found += [f for w in wanted for f in _of_content(vm, w)]
    found += [f for w in wanted for f in _of_identity(vm, w)]
    return found + [_stays(w) for w in wanted if w.disk.chain and w.disk.active.volume]


def _of_volume(wanted: Wanted, volume: Volume, users: Sequence[FileUser], *, overwrite: bool) -> Iterator[Finding]:
    if volume.trouble:
        yield blocker(
            f"{volume.where} cannot be used: {volume.trouble}", volume.cure or "mend that, or choose another volume"
        )
        return
    if others := [user for user in users if user.file == volume.where and user.holds]:
        yield blocker(f"{volume.where} is needed by {listed(others)}", "choose another volume")
    if volume.holds and not overwrite:
        cure = "look at it; if nobody needs it, say --overwrite"
        yield blocker(f"{volume.where} is not empty: {volume.holds}", cure)
    if not wanted.disk.chain:
        return
    image = wanted.disk.active
    if needed := volume.lacks(image.virtual_bytes, wanted.format or image.format):
        what = f"{volume.where} has {volume.size_bytes} bytes, disk {wanted.disk.target} needs {needed}"
        yield blocker(what, "enlarge the volume, or choose another")


def _twice(wanted: Sequence[Wanted]) -> Iterator[Finding]:
    volumes = [whoever_asks(w.to) if isinstance(w.to, Url) else w.to for w in wanted if w.volume]
    for where in {where for where in volumes if volumes.count(where) > 1}:
        yield blocker(f"{where} would hold two disks", "give each disk a volume of its own with --disk")


def _of_identity(vm: Vm, wanted: Wanted) -> Iterator[Finding]:
    """Find NFS disks without a user and group: libvirt 9.0 cannot read an overlay's header again that lacks them.

    "missing 'user' or 'group' attribute in JSON backing definition for NFS volume": the VM would not start.
    """
    active = wanted.disk.active.path if wanted.disk.chain else None
    if isinstance(active, Url) and active.url.startswith("nfs:") and identity_of(active) is None:
        what = f"disk {wanted.disk.target} ({active}) has no user and group, and libvirt needs them for an overlay"
        cure = f"give its <source> an <identity user='+UID' group='+GID'/>: virsh edit '{vm.name}', then start it anew"
        yield blocker(what, cure)


def _of_overlays(vm: Vm, wanted: Wanted) -> Iterator[Finding]:
    if wanted.overlays is not None or not wanted.disk.chain or vm.power is Power.OFF:
        return
    if wanted.volume is not None and wanted.disk.active.volume:
        what = f"disk {wanted.disk.target} goes from volume to volume, and its overlay needs a folder meanwhile"
        yield blocker(what, "name a folder with --overlay-dir DIR")


def _of_content(vm: Vm, wanted: Wanted) -> Iterator[Finding]:
    """Find what is lost when a disk is copied by what the guest sees of it, and what forbids that."""
    disk = wanted.disk
    by_content = wanted.volume is not None or any(
        image.volume or wanted.format not in (None, image.format) for image in disk.chain
    )
    if not disk.chain or not by_content:
        return
    into_folder = "move it to a folder in its own format"
    if len(disk.chain) > 1:
        what = f"disk {disk.target} is a chain of {len(disk.chain)} images, which can only move as files"
        yield blocker(what, f"{into_folder}, or make it one image: virsh blockpull '{vm.name}' {disk.target}")
    if disk.active.internal_snapshots:
        what = f"{disk.active.path} has internal snapshots ({disk.active.internal_snapshots}), which only a file keeps"
        yield blocker(what, f"{into_folder}, or remove them")
    if disk.encrypted:
        yield blocker(f"disk {disk.target} is encrypted, and can only move as a file", into_folder)
    if wanted.format and disk.active.format == "qcow2" == wanted.format and not disk.active.internal_snapshots:
        what = f"disk {disk.target} is copied by content: bitmaps in {disk.active.path} stay behind"
        yield Finding(Severity.NOTE, what, into_folder)


def of_checkpoints(vm: Vm, moves: Collection[DiskMove]) -> Iterator[Finding]:
    """Note the checkpoints that are dropped: a later incremental backup could not be told from a whole one."""
    if names := ", ".join(lost_checkpoints(vm, moves)):
        what = f"the checkpoints of {vm.name} ({names}) are dropped: a disk is copied by content, without its bitmaps"
        yield Finding(
            Severity.NOTE, what, "take a full backup after the move, or move the disk as a file in its own format"
        )


def _stays(wanted: Wanted) -> Finding:
    what = f"{wanted.disk.active.path} keeps what it holds: vmferry removes no volume"
    return Finding(Severity.NOTE, what, "wipe it when the receipt is there")
