"""Checks of a disk's chain: no deeper than libvirt bears, and nothing of another manager's job in it."""

from __future__ import annotations

from collections.abc import Sequence

from vmferry.model import MIRRORS, SAVES, Disk, Finding, Severity, Technology, Vm
from vmferry.model.names import overlay_in
from vmferry.model.plans import DEEPEST_CHAIN
from vmferry.model.processors import version_text
from vmferry.preflight.findings import Ends, blocker

_SHALLOW = 24
"""libvirt from 10.8 to before 12.0 reads QEMU's answers with a parser that gives up at 32 levels; around the images'
own there are seven or eight."""
_SHALLOW_FROM, _SHALLOW_UNTIL = 10_008_000, 12_000_000
_OVERLAYS = 2
"""Of the freeze and of one round at least."""
_SURE = _SHALLOW - _OVERLAYS


def deepest(libvirt: int) -> int:
    """Return the most images of a chain that a libvirt of this version (as 9000000) keeps track of."""
    return _SHALLOW if _SHALLOW_FROM <= libvirt < _SHALLOW_UNTIL else DEEPEST_CHAIN


def of_depth(ends: Ends, vm: Vm, disks: Sequence[Disk], technology: Technology) -> tuple[int, list[Finding]]:
    """Return the most images that a chain may have on both hosts, and a finding for each disk that exceeds that."""
    longest = max((len(disk.chain) for disk in disks), default=0)
    if longest <= _SURE and technology not in MIRRORS | SAVES:
        return DEEPEST_CHAIN, []
    most, where, version = min(_borne(ends))
    overlays = _OVERLAYS if technology in MIRRORS | SAVES else 0
    found = []
    for disk in disks:
        if len(disk.chain) + overlays > most:
            what = f"disk {disk.target} is a chain of {len(disk.chain)} images, a move adds {overlays}, and libvirt "
            what += f"{version_text(version)} of {where} bears {most}"
            found.append(_too_long(what, vm, disk, overlays))
    return most, found


def of_other_jobs(vm: Vm, disks: Sequence[Disk]) -> list[Finding]:
    """Find disks that lie on a job's overlay: this manager has no job of the VM, or it would not plan a move of it.

    The VM is in the hands of another manager, or a clone of what a job has left.
    """
    found = []
    for disk in disks:
        jobs = [overlay.job for image in disk.chain if (overlay := overlay_in(str(image.path)))]
        if jobs:
            what = f"disk {disk.target} lies on an overlay of job {jobs[0]}, which this manager has not at work on it"
            cure = f"where that job is, another --state folder for one, wait for it or `vmferry job cancel {jobs[0]}`; "
            found.append(blocker(what, cure + _taken_out(vm, disk)))
    return found


def _taken_out(vm: Vm, disk: Disk) -> str:
    """Say how a running VM is rid of overlays that no job has any more, without a write to what lies below them."""
    names = [str(image.path) for image in disk.chain]
    ours = [overlay_in(name) is not None for name in names]
    below = next((name for name, own in zip(names, ours, strict=True) if not own), None) if ours[0] else None
    if below is None:
        return f"if that is over, have the disk stand alone, while it runs: virsh blockpull '{vm.name}' {disk.target}"
    commit = f"virsh blockcommit '{vm.name}' {disk.target} --base '{below}' --active --pivot"
    return f"if nobody has that job any more, and nothing else lies on {below}, while it runs: {commit}"


def _borne(ends: Ends) -> list[tuple[int, str, int]]:
    hosts = (ends.host, ends.there) if ends.apart else (ends.host,)
    return [(deepest(host.platform().libvirt), host.name, host.platform().libvirt) for host in hosts]


def _too_long(what: str, vm: Vm, disk: Disk, overlays: int) -> Finding:
    cure = f"make it shorter: virsh blockpull '{vm.name}' {disk.target}"
    if overlays:
        return blocker(what, f"{cure}, or shut the VM down and move it while it is off")
    return Finding(Severity.BLOCKER, what.replace(" a move adds 0,", ""), "make it shorter: qemu-img rebase, or commit")
