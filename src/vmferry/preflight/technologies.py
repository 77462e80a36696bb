"""Decides which technologies this VM allows, and says why the others are not possible."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from vmferry.model import (
    MIRRORS,
    OTHER_HOST,
    SAME_HOST,
    SAVES,
    Disk,
    FileMove,
    Finding,
    Power,
    Ruled,
    Severity,
    Technology,
    Vm,
)


def ruled_out(vm: Vm, wanted_disks: Sequence[Disk], files: Collection[FileMove]) -> tuple[Ruled, ...]:
    """Return every technology on the same host that is not possible, with all the reasons."""
    return _ruled(
        {
            Technology.LIVE: [*_running(vm), *_frozen(wanted_disks), *_mirror(wanted_disks, files)],
            Technology.QUICK: [*_running(vm), *_frozen(wanted_disks), *_saved(vm)],
            Technology.OFFLINE: _off(vm),
        }
    )


def ruled_out_apart(vm: Vm, wanted_disks: Sequence[Disk]) -> tuple[Ruled, ...]:
    """Return every technology of moving to another host that is not possible, with all the reasons."""
    return _ruled(
        {
            Technology.LIVE_RELOCATION: [*_running(vm), *_frozen(wanted_disks), *_bitmaps(vm), *_migrated(vm)],
            Technology.QUICK_RELOCATION: [*_running(vm), *_frozen(wanted_disks), *_bitmaps(vm), *_saved(vm)],
            Technology.LAN: _off(vm),
        }
    )


def _ruled(reasons: Mapping[Technology, Sequence[str]]) -> tuple[Ruled, ...]:
    return tuple(Ruled(technology, tuple(why)) for technology, why in reasons.items() if why)


VIA = {
    "live": (Technology.LIVE, Technology.LIVE_RELOCATION),
    "quick": (Technology.QUICK, Technology.QUICK_RELOCATION),
    "offline": (Technology.OFFLINE, Technology.LAN),
    "lan": (Technology.OFFLINE, Technology.LAN),
}
"""What each word of --via means on one host, and from one to another."""


def choose(via: str, ruled: Collection[Ruled], *, apart: bool = False) -> tuple[Technology, list[Finding]]:
    """Return the highest possible technology, or the one asked for, and findings of what stands in its way."""
    whys = {r.technology: r.why for r in ruled}
    known = OTHER_HOST if apart else SAME_HOST
    if via == "auto":
        possible = [t for t in known if t not in whys]
        if possible:
            return possible[0], []
        return known[0], [
            Finding(Severity.BLOCKER, f"{t.console_name} is not possible: {why}", _CURES.get(t, ""))
            for t, reasons in whys.items()
            for why in reasons
        ]
    asked = VIA[via][apart]
    nothing = all(technology in whys for technology in known)
    cure = "shut the VM down, then use --via auto" if nothing else "use --via auto to take what is possible"
    return asked, [
        Finding(Severity.BLOCKER, f"{asked.console_name} is not possible: {why}", cure) for why in whys.get(asked, ())
    ]


def way_out(ruled: Collection[Ruled], *, apart: bool) -> str:
    """Return the advice to move live, which saves no memory, unless that is not possible; else empty."""
    live = Technology.LIVE_RELOCATION if apart else Technology.LIVE
    return "" if live in {r.technology for r in ruled} else "use --via live"


def runnable(wanted_disks: Sequence[Disk]) -> bool:
    """Tell whether a VM that is off could be moved while it runs, as far as can be told before it does."""
    return not _frozen(wanted_disks)


_SHUT_DOWN = "shut the VM down, then start the move again"
_CURES = dict.fromkeys(MIRRORS | SAVES, "see what stands beside the other technologies") | {
    Technology.OFFLINE: _SHUT_DOWN,
    Technology.LAN: _SHUT_DOWN,
}


def _running(vm: Vm) -> list[str]:
    return ["the VM is off"] if vm.power is Power.OFF else []


def _off(vm: Vm) -> list[str]:
    return [] if vm.power is Power.OFF else [f"the VM is {vm.power}"]


def _frozen(disks: Sequence[Disk]) -> list[str]:
    """Say which disks cannot have an overlay, and why."""
    return [
        f"disk {disk.target} is encrypted, and an overlay would hold the guest's writes in clear"
        for disk in disks
        if disk.encrypted
    ] + [
        f"disk {disk.target} is shareable, and its other users would not see the overlay"
        for disk in disks
        if disk.shareable
    ]


def _bitmaps(vm: Vm) -> list[str]:
    """Say that checkpoints rule a technology out, since a copy lacks their bitmaps.

    QEMU writes bitmaps into an image when it ends: in a copy made before they are there, but of no use.
    """
    if not vm.checkpoints:
        return []
    names = ", ".join(vm.checkpoints)
    return [f"its checkpoints ({names}) stand on bitmaps that are in their images only while it is off"]


def _mirror(disks: Sequence[Disk], files: Collection[FileMove]) -> list[str]:
    fixed = [
        f"{disk.device} {disk.target} takes no writes, and QEMU mirrors only disks that do"
        for disk in disks
        if disk.readonly or disk.device != "disk"
    ]
    return fixed + [
        f"the firmware's variables {file.source} lie in the folder that is left, and QEMU cannot "
        "change that file while the VM runs"
        for file in files
    ]


def _migrated(vm: Vm) -> list[str]:
    """Say why libvirt cannot migrate the guest.

    A guest that QEMU emulates loses memory that it writes while it is carried (docs/decisions/0009).
    """
    lost = [] if vm.precopy else ["it runs without KVM, and QEMU loses pages that such a guest writes meanwhile"]
    return lost + ([f"it cannot be migrated: {vm.no_save}"] if vm.no_save else [])


def _saved(vm: Vm) -> list[str]:
    return [f"its memory cannot be saved: {vm.no_save}"] if vm.no_save else []
