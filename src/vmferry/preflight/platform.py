"""Checks whether a host can take a VM over, by processor, machine type and versions. Pure: facts in, findings out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from shlex import quote

from vmferry.model import Finding, Severity
from vmferry.model.processors import CpuMode, Offer, Platform, VmNeeds, version_text
from vmferry.preflight.findings import blocker

_VERSIONED = re.compile(r"(?P<family>.+)-(?P<major>\d+)\.(?P<minor>\d+)(?:\.\d+)?")
"""A machine type of QEMU's own, as pc-q35-7.2; those of distributions have other names (pc-q35-rhel9.2.0)."""
_FEW = 12
"""Features named in a sentence; `vmferry cpu check --json` gives all."""


def platform_findings(needs: VmNeeds, platform: Platform) -> tuple[Finding, ...]:
    """Return all that stands against this VM on that host, each with its cure; notes are no obstacle."""
    offer = platform.offer(needs.guests)
    if offer is None:
        return (_no_such_guests(needs, platform),)
    return (
        *_vendor(needs, platform, offer),
        *_features(needs, platform, offer),
        *_host_cpu(needs, platform, offer),
        *_machine(needs, platform, offer),
        *_versions(needs, platform),
    )


def cpu_missing(needs: VmNeeds, offer: Offer) -> tuple[str, ...]:
    """Return the features that the guest has or wants and the host cannot give; empty if they cannot be compared."""
    return tuple(sorted(set(needs.cpu.features) - set(offer.cpu.features))) if offer.comparable else ()


def some(names: tuple[str, ...]) -> str:
    """Return names for a sentence: at most _FEW of them, and how many more there are."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")


def _note(what: str, cure: str) -> Finding:
    return Finding(Severity.NOTE, what, cure)


def _limit(needs: VmNeeds, platform: Platform) -> str:
    """Return the command that makes a VM able to run on both hosts, and say that a running one must be started anew."""
    command = f"`vmferry cpu limit {quote(needs.vm)} --to baseline --host {quote(platform.host)}`"
    return f"{command}, then shut it down and start it" if needs.running else command


def _no_such_guests(needs: VmNeeds, platform: Platform) -> Finding:
    present = ", ".join(str(offer.guests) for offer in platform.offers) or "none"
    what = f"{platform.host} has no {needs.guests} guests (it has: {present})"
    same = any(offer.guests.arch == needs.guests.arch for offer in platform.offers)
    if needs.guests.virt == "kvm" and same:
        return blocker(what, "switch virtualization on in its firmware and load the kvm module, or choose another host")
    return blocker(what, f"install QEMU for {needs.guests.arch} there, or choose another host")


def _vendor(needs: VmNeeds, platform: Platform, offer: Offer) -> Iterator[Finding]:
    theirs, ours = offer.cpu.vendor, needs.cpu.vendor
    if not (ours and theirs and ours != theirs):
        return
    what = f"{needs.vm} has a CPU of {ours}, {platform.host} has one of {theirs}"
    if needs.running:
        cure = f"choose a host with a processor of {ours}, or shut the VM down and move it while it is off"
        yield blocker(f"{what}, and no guest can be told so while it runs", cure)
    else:
        yield blocker(what, _limit_to_level(needs))


def _limit_to_level(needs: VmNeeds) -> str:
    return f"`vmferry cpu limit {quote(needs.vm)} --to x86-64-v2` gives it a CPU of no vendor"


def _features(needs: VmNeeds, platform: Platform, offer: Offer) -> Iterator[Finding]:
    missing = cpu_missing(needs, offer)
    if missing and needs.lenient:
        what = f"{platform.host} lacks {some(missing)}: {needs.vm} starts there without, as its definition allows"
        yield _note(what, _limit(needs, platform))
    elif missing:
        verb = "has" if needs.running else "asks for"
        what = f"{platform.host} lacks CPU features that {needs.vm} {verb}: {some(missing)}"
        yield blocker(what, _cure(needs, offer, platform))
    forbidden = tuple(sorted(set(needs.forbidden) & set(offer.cpu.features)))
    if forbidden and not needs.lenient:
        what = f"{platform.host} has CPU features that the definition of {needs.vm} forbids: {some(forbidden)}"
        yield blocker(what, "write policy='disable' in place of 'forbid' (`virsh edit`), or choose another host")
    if not offer.comparable:
        what = f"libvirt cannot tell whether {platform.host} has the CPU of {needs.vm} ({needs.guests.arch})"
        yield _note(what, "use hosts with the same processor")


def _cure(needs: VmNeeds, offer: Offer, platform: Platform) -> str:
    if offer.cpu.vendor and needs.cpu.vendor and offer.cpu.vendor != needs.cpu.vendor:
        return _limit_to_level(needs)
    return _limit(needs, platform)


def _host_cpu(needs: VmNeeds, platform: Platform, offer: Offer) -> Iterator[Finding]:
    """Note a running guest that has its host's own processor: no list of features says all that it has seen."""
    if not needs.running or needs.mode not in (CpuMode.PASSTHROUGH, CpuMode.MAXIMUM) or not offer.comparable:
        return
    what = f"{needs.vm} has its host's own CPU (mode='{needs.mode}'): libvirt promises it only on the same processor"
    yield _note(what, _limit(needs, platform))


def _machine(needs: VmNeeds, platform: Platform, offer: Offer) -> Iterator[Finding]:
    if not needs.machine or needs.machine in offer.machines or needs.machine in dict(offer.aliases):
        return
    what = f"{platform.host} has no machine type {needs.machine}: {_who_has(needs.machine, platform)}"
    upgrade = _upgrade(needs.machine, platform)
    newest = _newest_of_family(needs.machine, offer)
    if needs.running or newest is None:
        yield blocker(what, f"{upgrade}, or choose another host")
    else:
        yield blocker(what, f"{upgrade}, or give the VM {newest}, which {platform.host} has (`virsh edit`)")


def _who_has(machine: str, platform: Platform) -> str:
    version = _VERSIONED.fullmatch(machine)
    if version is None:
        return f"QEMU {version_text(platform.qemu)} there does not know it, that of another distribution may"
    wanted = int(version["major"]) * 1_000_000 + int(version["minor"]) * 1000
    if wanted > platform.qemu:
        return f"it came with QEMU {version['major']}.{version['minor']}, there is {version_text(platform.qemu)}"
    return f"QEMU {version_text(platform.qemu)} there has it no longer, or was built without it"


def _upgrade(machine: str, platform: Platform) -> str:
    version = _VERSIONED.fullmatch(machine)
    if version is None or int(version["major"]) * 1000 + int(version["minor"]) <= platform.qemu // 1000:
        return f"install the QEMU there that {machine} comes from"
    return f"install QEMU {version['major']}.{version['minor']} or newer there"


def _newest_of_family(machine: str, offer: Offer) -> str | None:
    """Return the newest machine type of the same board that the host has; None if there is none."""
    wanted = _VERSIONED.fullmatch(machine)
    if wanted is None:
        return None
    found = [m for name in offer.machines if (m := _VERSIONED.fullmatch(name)) and m["family"] == wanted["family"]]
    newest = max(found, key=lambda m: (int(m["major"]), int(m["minor"])), default=None)
    return None if newest is None else newest.string


def _versions(needs: VmNeeds, platform: Platform) -> Iterator[Finding]:
    """Find versions older than those at the source. Only a running or saved VM is looked at.

    An older QEMU may not read what a newer one wrote; fixes of one release (7.2.x) are alike.
    """
    if not needs.running:
        return
    if platform.qemu // 1000 < needs.qemu // 1000:
        what = (
            f"{platform.host} has QEMU {version_text(platform.qemu)}, {needs.vm} is from {version_text(needs.qemu)}: "
            "the state of a guest is not sure to load into an older one"
        )
        yield blocker(what, "upgrade QEMU there, or shut the VM down and move it while it is off")
    if platform.libvirt // 1000 < needs.libvirt // 1000:
        what = (
            f"{platform.host} has libvirt {version_text(platform.libvirt)}, older than {version_text(needs.libvirt)} "
            f"beside {needs.vm}: it may refuse a part of the definition"
        )
        yield _note(what, "upgrade libvirt there if it does")
