"""Decides, for each file that a move copies, what becomes of it at the source, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmferry.hosts.asking import AskUsers
from vmferry.hosts.interface import Host
from vmferry.model import (
    DiskMove,
    Fate,
    FileEntry,
    FileMove,
    FileUser,
    Finding,
    ImageMove,
    Leaving,
    MoveRequest,
    NamedIn,
    Severity,
    SourceFileFate,
    UserKind,
    Vm,
    Where,
    listed,
)
from vmferry.preflight.findings import blocker

ALONE = "nobody else is known to need it"
VOLUME = "vmferry removes no volume: wipe it when the receipt is there"
DISC = "a disc may be in the drives of other VMs"
LIBVIRTS = "it lies where libvirt keeps it"
KEPT = "--keep-source"
TEMPLATE = "it is a base in another folder, perhaps a template: --remove-bases removes it if nobody else needs it"


@dataclass(frozen=True, slots=True)
class Move:
    """What is about to be moved, as far as it is known when the fate of its files is decided."""

    vm: Vm
    disks: Sequence[DiskMove]
    files: Sequence[FileMove]
    discs: frozenset[str]
    """Targets of drives whose disc is copied to another host."""
    request: MoveRequest


@dataclass
class Judged:
    """The fate of each file at the source, those that lie on others first."""

    sources: list[SourceFileFate] = field(default_factory=list)
    users: dict[Where, list[FileUser]] = field(default_factory=dict)
    """Others than the VM itself who need it."""

    def stays(self, path: Where) -> bool:
        return any(source.path == path and not source.goes for source in self.sources)

    def disks(self, moves: Sequence[DiskMove]) -> tuple[DiskMove, ...]:
        return tuple(
            replace(move, images=tuple(replace(i, stays=self.stays(i.source)) for i in move.images)) for move in moves
        )

    def files(self, moves: Sequence[FileMove]) -> tuple[FileMove, ...]:
        return tuple(replace(move, stays=self.stays(move.source)) for move in moves)


def judge(move: Move, host: Host, ask: AskUsers, *, apart: bool) -> Judged:
    """Decide the fate of all files of a move, from the active images down, after one question for their users.

    A base goes only with all that lies on it. `apart`: the VM goes to another host.
    """
    images = _images(move.disks)
    asked = [image.source for image in images if _asked(move, image)]
    asked += [file.source for file in move.files if not file.stays]
    users = ask(host, asked, _folders(move, apart=apart)) if asked else ()
    entries = {path: host.entry(path) for path in asked if isinstance(path, Path)}
    judged, going = Judged(), set[Where]()
    left = _left(move, entries)
    for image in images:
        source = _source(image.source, _role(move, image), image.data_bytes, entries)
        leaving = _leaving(move, going | set(source.names))
        others = leaving.others([user for user in users if user.file == image.source])
        _judge(judged, source, others, _why_it_stays(move, image, source, left), move.request)
        going |= set(judged.sources[-1].names) if judged.sources[-1].goes else set()
    for file in move.files:
        source = _source(file.source, "UEFI variables", 0, entries)
        leaving = _leaving(move, going | {file.source})
        others = leaving.others([user for user in users if user.file == file.source])
        why = LIBVIRTS if file.stays else KEPT if move.request.keep_source else ""
        _judge(judged, source, others, why, move.request)
    return judged


def _judge(judged: Judged, source: SourceFileFate, others: list[FileUser], why: str, request: MoveRequest) -> None:
    if others:
        judged.users[source.path] = others
        why = why if why == VOLUME else f"needed by {listed(others)}"
    if why:
        source = replace(source, fate=Fate.STAYS, why=why)
    elif request.keep_source:
        source = replace(source, fate=Fate.RENAMED, why=KEPT)
    judged.sources.append(source)


def _images(moves: Sequence[DiskMove]) -> list[ImageMove]:
    """Return each image once, those that lie on others first.

    An image is first seen before all that lies on it; then the order is turned round.
    """
    seen: dict[Where, ImageMove] = {}
    for move in moves:
        for image in reversed(move.images):
            seen.setdefault(image.source, image)
    return list(reversed(seen.values()))


def _asked(move: Move, image: ImageMove) -> bool:
    """Tell whether an image's users are looked for: not for discs. A volume may be somebody else's disk too."""
    return not any(image in disk.images for disk in move.disks if disk.target in move.discs)


def _folders(move: Move, *, apart: bool) -> list[Path]:
    """Return the folders where images may lie that no VM names: those that are left, and destinations on this host."""
    images = [image for disk in move.disks for image in disk.images]
    places = [image.source for image in images if not image.from_volume]
    places += [image.destination for image in images if not (apart or image.to_volume)]
    return sorted({place.parent for place in places if isinstance(place, Path)})


def _left(move: Move, entries: Mapping[Path, FileEntry | None]) -> set[Path]:
    """Return the folders of the active images, as named and by their real names."""
    active = [disk.active.source for disk in move.disks if not disk.active.from_volume]
    found = set()
    for path in active:
        if isinstance(path, Path):
            entry = entries.get(path)
            found |= {path.parent, entry.path.parent} if entry else {path.parent}
    return found


def _why_it_stays(move: Move, image: ImageMove, source: SourceFileFate, left: Collection[Path]) -> str:
    """Say why an image stays for what it is, whether somebody else needs it or not; empty when it may go."""
    if image.from_volume:
        return VOLUME
    if not _asked(move, image):
        return DISC
    active = any(image.source == disk.active.source for disk in move.disks)
    place = source.data or image.source
    if active or move.request.remove_bases or (isinstance(place, Path) and place.parent in left):
        return ""
    return TEMPLATE


def _role(move: Move, image: ImageMove) -> str:
    active = [disk.target for disk in move.disks if disk.active.source == image.source]
    above = [disk.target for disk in move.disks if image in disk.images]
    return f"disk {active[0]}" if active else f"base of {', '.join(above)}"


def _source(path: Where, role: str, data_bytes: int, entries: Mapping[Path, FileEntry | None]) -> SourceFileFate:
    entry = entries.get(path) if isinstance(path, Path) else None
    if entry is None:
        return SourceFileFate(path, role, Fate.REMOVED, ALONE, data_bytes)
    data = entry.path if entry.links else None
    return SourceFileFate(path, role, Fate.REMOVED, ALONE, entry.bytes, data, entry.links)


def _leaving(move: Move, going: set[Where]) -> Leaving:
    disks = frozenset(disk.target for disk in move.disks)
    return Leaving(move.vm.uuid, disks, frozenset(going), frozenset(file.source for file in move.files))


# -- findings


def of_users(judged: Judged, vm: Vm, moves: Sequence[DiskMove]) -> Iterator[Finding]:
    """Find other users of the files.

    Another VM that writes to an image, or has it below its own disk, stands in the way of freezing it; other users are
    noted.
    """
    active = {move.active.source: move for move in moves if move.frozen}
    for path, users in judged.users.items():
        rivals = [user for user in users if path in active and _is_rival(user, vm)]
        if rivals:
            names = ", ".join(sorted({user.who.removeprefix("VM ") for user in rivals}))
            cure = f"shut {names} down and remove the disk there, or leave {active[path].target} out"
            yield blocker(f"{path} is a disk of {names} too", cure)
        else:
            yield Finding(Severity.NOTE, f"{path} is copied, and stays where it is: needed by {listed(users)}")


def _is_rival(user: FileUser, vm: Vm) -> bool:
    other = user.kind is UserKind.VM and user.id != vm.uuid and bool(user.disk) and user.sure
    return other and user.named_in in (NamedIn.RUNNING, NamedIn.NEXT_START)
