"""What a VM's disks lie on, what a job expects them to lie on, and how these differ. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

SECTOR = 512
"""QEMU rounds the size of a raw image up to whole ones."""
MERGES = frozenset({"pull", "commit", "active-commit"})
"""Block jobs that rewrite a chain; a backup does not."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a chain, as QEMU has it open, or for a VM that is off as the images' headers tell."""

    name: str
    """A path, or a URL."""
    format: str
    virtual_bytes: int
    snapshots: tuple[str, ...] = ()
    """Internal snapshots in it."""


@dataclass(frozen=True, slots=True)
class DiskChain:
    """What one disk lies on now, the active image first."""

    target: str
    named: tuple[str, ...]
    """As libvirt tells."""
    layers: tuple[Layer, ...]
    mirror: str = ""
    """Where its writes are copied to as well; empty for none."""
    block_job: str = ""
    """pull, copy, commit, active-commit or backup, as libvirt tells; empty for none."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a job expects one disk to lie on."""

    target: str
    overlays: tuple[str, ...]
    """The job's own, the active one first: qcow2."""
    below: tuple[str, ...]
    """What the disk lay on before the job, as libvirt told it, the active one first."""
    layers: tuple[Layer, ...]
    """The same, as QEMU told it."""
    mirror: str = ""
    """Where the job's mirror copies to, if one may run."""

    @property
    def named(self) -> tuple[str, ...]:
        return (*self.overlays, *self.below)


class ForeignAct(StrEnum):
    """What somebody other than the job did to a disk."""

    DETACHED = "detached"
    SNAPSHOT = "snapshot"
    """Images on top of the job's."""
    MERGED = "merged"
    """Images of the job's, or below them, are gone from the chain."""
    REPLACED = "replaced"
    RESIZED = "resized"
    INTERNAL_SNAPSHOT = "internal snapshot"
    BLOCK_JOB = "block job"
    UNLIKE = "unlike"
    """QEMU and libvirt do not tell the same."""


@dataclass(frozen=True, slots=True)
class Difference:
    target: str
    kind: ForeignAct
    says: str
    """As a part of a sentence: "disk vda runs on ..."."""


def differences(expected: Sequence[Expected], found: Sequence[DiskChain]) -> list[Difference]:
    """Return what is not as the job made it: for each disk that it moves the gravest difference."""
    there = {chain.target: chain for chain in found}
    each = (next(_of_disk(disk, there.get(disk.target)), None) for disk in expected)
    return [difference for difference in each if difference is not None]


def _of_disk(expected: Expected, found: DiskChain | None) -> Iterator[Difference]:
    target = expected.target
    if found is None:
        yield Difference(target, ForeignAct.DETACHED, f"disk {target} was detached")
        return
    yield from _of_names(expected, found)
    yield from _of_layers(expected, found)
    yield from _of_jobs(expected, found)


def _of_names(expected: Expected, found: DiskChain) -> Iterator[Difference]:
    target = expected.target
    wanted, named = tuple(map(_whoever_asks, expected.named)), tuple(map(_whoever_asks, found.named))
    if named == wanted:
        return
    active, ours = (named or ("nothing",))[0], set(expected.overlays)
    on_it = next((n for n, name in enumerate(named) if name in ours), None)
    if wanted[0] in named:
        if active != wanted[0]:
            yield Difference(target, ForeignAct.SNAPSHOT, f"disk {target} runs on {active}, which somebody put on top")
        gone = [name for name in wanted if name not in named]
        if gone:
            yield Difference(
                target, ForeignAct.MERGED, f"{gone[0]} is no longer below disk {target}, somebody merged it"
            )
        strange = next((name for name in named if name not in wanted), "its images in another order")
        yield Difference(target, ForeignAct.SNAPSHOT, f"disk {target} lies on {strange}, which somebody put there")
    elif active in wanted:
        yield Difference(
            target, ForeignAct.MERGED, f"disk {target} runs on {active} again, somebody merged what lay on it"
        )
    elif on_it is not None:
        yield Difference(target, ForeignAct.SNAPSHOT, f"disk {target} runs on {active}, which somebody put on top")
    else:
        yield Difference(target, ForeignAct.REPLACED, f"disk {target} runs on {active}, which is not of this job")


def _whoever_asks(name: str) -> str:
    """Return an NFS URL without user and group, any other name as it is.

    QEMU leaves out a user of 0 where libvirt names it.
    """
    return name.partition("?")[0] if name.startswith("nfs:") else name


def _of_layers(expected: Expected, found: DiskChain) -> Iterator[Difference]:
    target, count = expected.target, len(expected.overlays)
    wanted = [(name, "qcow2") for name in expected.overlays]
    wanted += [(_path(layer.name), layer.format) for layer in expected.layers]
    size = _sectors(expected.layers[0].virtual_bytes) if expected.layers else 0
    if found.layers and _sectors(found.layers[0].virtual_bytes) != size:
        now = found.layers[0].virtual_bytes
        yield Difference(target, ForeignAct.RESIZED, f"disk {target} was resized from {size} to {now} bytes")
    for layer in found.layers[:count]:
        if layer.snapshots:
            held = f"{layer.name} holds the snapshot {layer.snapshots[0]!r}, which somebody took"
            yield Difference(target, ForeignAct.INTERNAL_SNAPSHOT, held)
    layers = [(_path(layer.name), layer.format) for layer in found.layers]
    if len(layers) != len(wanted) or not all(map(_alike, layers, wanted)):
        strange = next((pair for pair in layers if pair[0] and pair not in wanted), None)
        what = f"{strange[0]} as {strange[1]}" if strange else "other images than libvirt tells"
        yield Difference(target, ForeignAct.UNLIKE, f"QEMU has disk {target} on {what}")


def _of_jobs(expected: Expected, found: DiskChain) -> Iterator[Difference]:
    target = expected.target
    if found.block_job in MERGES:
        what = f"somebody's block job ({found.block_job}) runs on disk {target}"
        yield Difference(target, ForeignAct.BLOCK_JOB, what)
    elif found.mirror and found.mirror != expected.mirror:
        yield Difference(target, ForeignAct.BLOCK_JOB, f"somebody copies disk {target} to {found.mirror}")


def _alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Compare two (name, format) pairs; an empty name, which is no path, equals any."""
    return one[1] == other[1] and (one[0] == other[0] or "" in (one[0], other[0]))


def _path(name: str) -> str:
    """Return the name if it is a path, else "", which is not compared.

    A volume has more names than one: libvirt's own, QEMU's own, one with its user and one without.
    """
    return name if name.startswith("/") else ""


def _sectors(bytes_: int) -> int:
    return -(-bytes_ // SECTOR) * SECTOR


def runs_of(chain: Sequence[str], ours: Sequence[str]) -> list[tuple[int, int]]:
    """Return (first, one past the last) of each run of a job's images in a chain, topmost first."""
    mine, runs = set(ours), list[tuple[int, int]]()
    for number, name in enumerate(chain):
        if name not in mine:
            continue
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
