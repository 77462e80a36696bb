"""Preflight's basic checks: each looks at facts and returns findings with their cures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from shlex import quote

from vmferry.hosts.interface import Host, filesystem_of
from vmferry.model import (
    MIRRORS,
    SAVES,
    Disk,
    DiskMove,
    FileMove,
    Finding,
    Image,
    ImageMove,
    Power,
    Severity,
    Technology,
    Url,
    Vm,
    Where,
)
from vmferry.model.names import unfit

GROWTH_PART = 0.05
"""Room for the overlays, as a part of the data to copy: the guest writes while it is copied."""
GROWTH_FLOOR_BYTES = 128 << 20
PAUSE_MARGIN = 1.25
"""What is advised above the least pause: the last changes take their time too."""
METADATA_PART = 0.01
"""A file system's own blocks for what is copied."""


def blocker(what: str, cure: str) -> Finding:
    return Finding(Severity.BLOCKER, what, cure)


def stays(disk: Disk) -> str | None:
    """Return why a disk does not move with --path; None when it does."""
    if not disk.chain:
        return "it is empty"
    if disk.device != "disk":
        return f"it is a {disk.device}"
    if disk.readonly:
        return "it is read-only"
    if disk.shareable:
        return "it is shareable"
    return None


def stays_note(disk: Disk, why: str, path: Path) -> Finding:
    what = f"disk {disk.target} ({disk.active.path}) stays where it is: {why}"
    return Finding(Severity.NOTE, what, f"move it too with --disk {disk.target}={path}")


def no_precopy(vm: Vm, technology: Technology, way_out: str) -> list[Finding]:
    """Note that memory is saved with the guest standing, without KVM.

    QEMU loses pages that a TCG guest dirties while they are written: see docs/decisions/0009.
    """
    if technology not in SAVES or vm.precopy or vm.power is Power.OFF:
        return []
    what = f"{vm.name} runs without KVM: its {_mib(vm.touched_bytes)} of memory are saved with the guest standing"
    cure = ", or ".join(filter(None, ("let it run under KVM", way_out)))
    return [Finding(Severity.NOTE, what, f"{cure}, for a shorter pause")]


def of_pause(
    vm: Vm, technology: Technology, least_s: float, allowed_s: float, way_out: str, *, learned: bool
) -> list[Finding]:
    """Find a pause, in seconds, that even an idle guest would exceed: the job would wait for ever.

    `way_out`: the way without a saved state, if there is one. `learned`: earlier moves from the host have raised it.
    """
    if technology not in SAVES or least_s <= allowed_s:
        return []
    whence = ", as earlier moves from its host have shown" if learned else ""
    what = f"{vm.name} would stand still for {least_s:.1f} s at least{whence}; {allowed_s:g} s are allowed"
    allow = f"allow it with --max-pause {ceil(least_s * PAUSE_MARGIN)}s"
    return [blocker(what, ", or ".join(filter(None, (allow, way_out))))]


def of_memory(vm: Vm, *, runnable: bool) -> list[Finding]:
    """Find memory that libvirt keeps for the VM's next start (managed save).

    It names the disks where they are now: a start would load it onto disks that are gone. `runnable`: the VM could be
    moved while it runs.
    """
    if not vm.managed_save:
        return []
    what = f"libvirt keeps the memory of {vm.name} for its next start, as of the disks where they are now"
    give_up = f"give that memory up: `virsh managedsave-remove '{vm.name}'`"
    start = "start it and move it while it runs" if runnable else "start it and shut it down"
    return [blocker(what, f"{start}, or {give_up}")]


def of_disks(vm: Vm, disks: Sequence[Disk]) -> list[Finding]:
    """Find what makes a disk impossible to move at all."""
    return [finding for disk in disks for finding in _of_disk(vm, disk)]


def _of_disk(vm: Vm, disk: Disk) -> list[Finding]:
    leave_out = f"leave {disk.target} out: name the other disks with --disk TARGET=DIR instead of --path"
    found = []
    if disk.source == "none" or not disk.chain:
        found.append(blocker(f"disk {disk.target} has no image in a local file", leave_out))
    elif disk.source not in ("file", "block", "network"):
        found.append(blocker(f"disk {disk.target} is a {disk.source} disk, not a file or a volume", leave_out))
    if disk.device == "lun":
        found.append(blocker(f"disk {disk.target} is a device passed through to the guest", leave_out))
    if disk.transient:
        found.append(blocker(f"disk {disk.target} is transient: its writes are lost at the VM's end", leave_out))
    if disk.secret_missing:
        what = (
            f"libvirt has no secret {disk.secret_missing}, which decrypts disk {disk.target}: the VM cannot be started"
        )
        cure = "define it with `virsh secret-define`, its passphrase with `virsh secret-set-value "
        found.append(blocker(what, f"{cure}{disk.secret_missing}`"))
    if disk.block_job:
        cure = f"wait for it, or end it with `virsh blockjob '{vm.name}' {disk.target} --abort`"
        found.append(blocker(f"a {disk.block_job} runs on disk {disk.target}", cure))
    for image in disk.chain:
        found += _of_image(disk, image, leave_out)
    return found


def _of_image(disk: Disk, image: Image, leave_out: str) -> list[Finding]:
    found = []
    if image.virtual_bytes == 0:
        found.append(blocker(f"{image.path} cannot be read as {image.format}", "repair it, or leave the disk out"))
    if image.backing and not image.backing_format:
        cure = f"with the VM off: qemu-img rebase -u -F FORMAT -b '{image.backing}' '{image.path}'"
        found.append(blocker(f"{image.path} does not say what format its backing image has", cure))
    if image.data_file:
        cure = "leave the disk out, or convert it to a qcow2 without one"
        found.append(blocker(f"{image.path} keeps its data in another file, {image.data_file}", cure))
    if image.backing and (":" in image.backing.split("/")[0]):
        found.append(blocker(f"{image.path} has a backing image that is not a file: {image.backing}", leave_out))
    return found


@dataclass(frozen=True, slots=True)
class Ends:
    """The host that the VM is on, and the one that it goes to; the same one for a move of its storage alone."""

    host: Host
    there: Host

    @property
    def apart(self) -> bool:
        return self.host is not self.there


def of_images(ends: Ends, vm: Vm, moves: Collection[DiskMove], files: Collection[FileMove]) -> list[Finding]:
    """Find what stands in the way at the destination, and at the source that is left."""
    images = [image for image in _distinct(moves) if not image.to_volume]
    places = [(image.source, image.destination) for image in images] + [(f.source, f.destination) for f in files]
    found = [f for source, destination in places for f in _of_place(ends, source, destination)]
    destinations = {folder for image in images if (folder := _folder(image))}
    found += _of_folders(ends.there, destinations, "the destination")
    overlays: set[Path] = set()
    if vm.power is not Power.OFF:
        overlays = {move.overlays.parent for move in moves if move.frozen} - {Path("/")}
        copies = {move.overlay_copies.parent for move in moves if move.frozen} - {Path("/")}
        found += _of_folders(ends.host, overlays, "the folder of overlays")
        copies -= destinations | (set() if ends.apart else overlays)
        found += _of_folders(ends.there, copies, "the folder of overlays")
    found += _of_folders(ends.host, _left(moves, files) - overlays, "the source")
    found += _same_names(images)
    return found


def _distinct(moves: Collection[DiskMove]) -> list[ImageMove]:
    return list({image.source: image for move in moves for image in move.images}.values())


def _left(moves: Collection[DiskMove], files: Collection[FileMove]) -> set[Path]:
    """Return the folders that files are removed from in the end."""
    images = [image for image in _distinct(moves) if not image.stays and not image.from_volume]
    sources = [*(image.source for image in images), *(file.source for file in files if not file.stays)]
    return {source.parent for source in sources if isinstance(source, Path)}


def _folder(image: ImageMove) -> Path | None:
    return image.destination.parent if isinstance(image.destination, Path) and not image.to_volume else None


def _of_place(ends: Ends, source: Where, destination: Where) -> list[Finding]:
    if isinstance(destination, Url):
        return []
    if why := unfit(destination):
        return [blocker(f"the name {destination.name!r} cannot go along: {why}", "give the image another name first")]
    if isinstance(source, Url) or ends.apart:
        return _of_new(ends.there, destination)
    if destination == source or _real(ends.host, destination) == _real(ends.host, source):
        return [blocker(f"{source} lies there already", "choose another folder, or leave that disk out")]
    return _of_new(ends.there, destination)


def _real(host: Host, path: Path) -> Path:
    """Return the file's path on that host with links resolved that lead to its folder."""
    return (host.folder(path.parent).real or path.parent) / path.name


def _of_new(host: Host, destination: Path) -> list[Finding]:
    if host.exists(destination):
        return [blocker(f"{destination} exists and is never overwritten", "move it away or choose another folder")]
    return []


def _of_folders(host: Host, folders: Collection[Path], which: str) -> list[Finding]:
    found = []
    for path in sorted(folders):
        folder = host.folder(path)
        if not folder.exists and host.exists(path):
            found.append(blocker(f"{which} {path} is a file", "name the folder that the files are to lie in"))
        elif not folder.exists:
            device = path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")
            cure = "name a device that is there" if device else f"make it: mkdir -p {quote(str(path))}"
            found.append(blocker(f"{which} {path} does not exist", cure))
        elif not folder.writable:
            found.append(blocker(f"{which} {path} cannot be written", "mount it for writing, or run as a user who may"))
    return found


def _same_names(images: Collection[ImageMove]) -> list[Finding]:
    counted = Counter(image.destination for image in images)
    return [
        blocker(f"{count} images would be named {path}", "give one of the disks another folder with --disk")
        for path, count in counted.items()
        if count > 1
    ]


def of_space(
    ends: Ends, vm: Vm, moves: Collection[DiskMove], technology: Technology, reserved: Mapping[str, int]
) -> list[Finding]:
    """Find storages without room for the copies, the saved state, the overlays on both sides, and other jobs' plans.

    `reserved`: bytes that active jobs will still take, by file system.
    """
    left: Counter[Path] = Counter()
    needed: Counter[Path] = Counter()
    for image in _distinct(moves):
        if folder := _folder(image):
            needed[folder] += round(image.data_bytes * (1 + METADATA_PART))
    if technology in MIRRORS | SAVES:
        for move in (m for m in moves if m.frozen):
            growth = GROWTH_FLOOR_BYTES + round(sum(i.data_bytes for i in move.images) * GROWTH_PART)
            left[move.overlays.parent] += growth
            needed[move.overlay_copies.parent] += growth
    if technology in SAVES and moves:
        first = next(iter(moves))
        needed[first.overlay_copies.parent] += vm.memory_bytes
        if ends.apart:
            left[first.overlays.parent] += vm.memory_bytes
    if not ends.apart:
        return _short(ends.host, needed + left, reserved)
    return _short(ends.there, needed, reserved) + _short(ends.host, left, reserved)


def _short(host: Host, needed: Mapping[Path, int], reserved: Mapping[str, int]) -> list[Finding]:
    by_filesystem: Counter[str] = Counter()
    places: dict[str, Path] = {}
    for path, size in needed.items():
        folder = host.folder(path)
        if folder.exists:
            by_filesystem[filesystem_of(folder, host)] += size
            places.setdefault(filesystem_of(folder, host), path)
    found = []
    for filesystem, size in by_filesystem.items():
        path = places[filesystem]
        free = host.folder(path).free_bytes
        held = reserved.get(filesystem, 0)
        if size + held > free:
            what = f"{path} has {_mib(free)} free, the move needs {_mib(size)}"
            what += f" and other jobs have reserved {_mib(held)}" if held else ""
            found.append(blocker(what, "free space there, or choose another folder"))
    return found


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
