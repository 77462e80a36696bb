"""Which technologies this VM allows, and in words why the others are not possible."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vmferry.model import Disk, FileMove, Finding, Power, Ruled, Severity, Technology, Vm


def ruled_out(vm: Vm, wanted_disks: Sequence[Disk], files: Collection[FileMove]) -> tuple[Ruled, ...]:
    """Every technology that is not possible, with all the reasons."""
    reasons = {
        Technology.LIVE: [*_running(vm), *_frozen(wanted_disks), *_mirror(wanted_disks, files)],
        Technology.QUICK: [*_running(vm), *_frozen(wanted_disks), *_saved(vm)],
        Technology.OFFLINE: _off(vm),
    }
    return tuple(Ruled(technology, tuple(why)) for technology, why in reasons.items() if why)


def choose(via: str, ruled: Collection[Ruled]) -> tuple[Technology, list[Finding]]:
    """The highest possible technology, or the one asked for, with what stands in its way."""
    whys = {r.technology: r.why for r in ruled}
    if via == "auto":
        possible = [t for t in Technology if t not in whys]
        if possible:
            return possible[0], []
        return Technology.LIVE, [
            Finding(Severity.BLOCKER, f"{t.console_name} is not possible: {why}", _CURES.get(t, ""))
            for t, reasons in whys.items()
            for why in reasons
        ]
    asked = Technology(via)
    nothing = all(technology in whys for technology in Technology)
    cure = "shut the VM down, then use --via auto" if nothing else "use --via auto to take what is possible"
    return asked, [
        Finding(Severity.BLOCKER, f"{asked.console_name} is not possible: {why}", cure) for why in whys.get(asked, ())
    ]


_CURES = {
    Technology.LIVE: "see what stands beside the other technologies",
    Technology.QUICK: "see what stands beside the other technologies",
    Technology.OFFLINE: "shut the VM down, then start the move again",
}


def _running(vm: Vm) -> list[str]:
    return ["the VM is off"] if vm.power is Power.OFF else []


def _off(vm: Vm) -> list[str]:
    return [] if vm.power is Power.OFF else [f"the VM is {vm.power}"]


def _frozen(disks: Sequence[Disk]) -> list[str]:
    """What no overlay can stand on."""
    return [
        f"disk {disk.target} is encrypted, and an overlay would hold the guest's writes in clear"
        for disk in disks
        if disk.encrypted
    ] + [
        f"disk {disk.target} is shareable, and its other users would not see the overlay"
        for disk in disks
        if disk.shareable
    ]


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


def _saved(vm: Vm) -> list[str]:
    return [f"its memory cannot be saved: {vm.no_save}"] if vm.no_save else []
