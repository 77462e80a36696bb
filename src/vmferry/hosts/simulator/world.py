"""A toy world for tests: VMs that write, files that hold what was written, and a list of broken promises.

A disk's content is a stamp for each block. Guests write a new stamp before and after each call that a host
gets, and every write is acknowledged at once: `acknowledged` is what a guest was promised.
"""

from __future__ import annotations

import fcntl
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import getrandbits
from threading import RLock

from vmferry.errors import NoSuchVm
from vmferry.hosts.records import Quiesced
from vmferry.hosts.simulator.cpu_models import Processor, platform
from vmferry.model import Finding, Lack, Load, Placed, Power, Where
from vmferry.model.processors import Platform

BLOCK = 4 << 20
BLOCKS = 6  # of a disk: few, so that each is written often


@dataclass(eq=False)
class File:
    """One file; two names of the same one are a hard link."""

    blocks: dict[int, int] = field(default_factory=dict)
    format: str = "raw"
    backing: Where | None = None
    changed: int = 0
    inode: int = field(default_factory=lambda: getrandbits(62))  # a world outlives its process
    state: SimulatedState | None = None

    def write(self, block: int, stamp: int) -> None:
        self.blocks[block] = stamp
        self.changed += 1


@dataclass(eq=False)
class SimulatedState:
    """A guest's memory, and what its disks held when it stopped."""

    uuid: str
    power: Power
    content: dict[str, dict[int, int]]
    writers: dict[Where, int]
    """The active images, and how often each had changed."""
    memory: dict[int, int]
    """The blocks of the saved state's own file."""
    disks: dict[str, Placed] = field(default_factory=dict)
    """The images that the state is to be loaded on."""
    spent: bool = False
    machine: Machine | None = None
    """The VM, which libvirt no longer knows once it was undefined."""


@dataclass(eq=False)
class SimulatedMirror:
    destination: Placed
    looks: int = 0


@dataclass(eq=False)
class Live:
    """A QEMU process."""

    disks: dict[str, Placed]
    power: Power
    loaded: Path | None = None
    """The saved state it was restored from, until that is released."""
    unproved: bool = False
    """The VM is still coming here by live migration: it is not complete, and was never let run here."""
    mirrors: dict[str, SimulatedMirror] = field(default_factory=dict)
    saving: bool = False
    """The VM's memory is on its way, to a saved state or another host: libvirt changes nothing of it."""
    run: int = field(default_factory=lambda: getrandbits(62))
    started_on: dict[str, Where] = field(default_factory=dict)
    """The active images of its start: it may never write what lies below, as under AppArmor."""

    def __post_init__(self) -> None:
        self.started_on = self.started_on or {target: image.path for target, image in self.disks.items()}


@dataclass(eq=False)
class Machine:
    name: str
    uuid: str
    readonly: frozenset[str] = frozenset()
    definition: dict[str, Placed] | None = None
    live: Live | None = None
    nvram: Path | None = None
    snapshots: dict[str, dict[str, Path]] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    bitmaps: set[str] = field(default_factory=set)
    """The bitmaps of its checkpoints that lie in its images."""
    placeholder: str = ""
    """The job whose placeholder this is, which cannot start."""
    autostart: bool = False
    networks: list[str] = field(default_factory=list)
    agent: bool = False
    quiesces: Quiesced = Quiesced.YES
    """What its agent does when it is asked to freeze the file systems."""
    halted: bool = False
    """Its file systems are frozen."""
    behind_s: float = 0.0
    """Seconds that its clock is behind; nobody but its agent sets it."""
    slow_thaws: int = 0
    """How often its agent is asked to thaw before it does."""
    processor: Processor = field(default_factory=Processor)
    managed: SimulatedState | None = None
    """Its managed save: the memory that libvirt keeps for the next start."""

    @property
    def disks(self) -> dict[str, Placed]:
        """The images that the VM runs on or, when it is off, would start from, by target."""
        return self.live.disks if self.live else dict(self.definition or {})

    @property
    def power(self) -> Power:
        return self.live.power if self.live else Power.OFF

    @property
    def able(self) -> bool:
        """Does the VM run here, or can anybody start it, or let it run, at any time?"""
        if self.live is not None:
            return not self.live.unproved
        return self.definition is not None and not self.placeholder


@dataclass(eq=False)
class Bookmark:
    destination: Path
    file: File
    source_changed: int
    whole: bool = False
    proved: set[int] = field(default_factory=set)
    """Blocks of a source that grows which are not read again."""


@dataclass
class World:
    """The toy world as one host sees it: VMs, files, what jobs keep, broken promises, and the other hosts."""

    machines: dict[str, Machine] = field(default_factory=dict)
    files: dict[Where, File] = field(default_factory=dict)
    bookmarks: dict[Path, Bookmark] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)
    """(VM, disk) to block to the stamp that its guest was promised"""
    frozen: dict[Where, int] = field(default_factory=dict)
    """Bases that nothing may change, with how often each had changed before."""
    volumes: set[Where] = field(default_factory=set)
    """Files that stand for devices: they are there from the beginning, and stay."""
    full: set[str] = field(default_factory=set)
    """File systems without space."""
    platform: Platform = field(default_factory=platform)
    load: Load = field(default_factory=lambda: Load(0.0))
    """The load of its guests and storages."""
    effects: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    stamps: int = 0
    violations: list[str] = field(default_factory=list)
    peers: dict[str, World] = field(default_factory=dict)
    """Other hosts, by name, with files of their own."""
    networks: set[str] = field(default_factory=set)
    lacks: list[Lack] = field(default_factory=list)
    gone: list[Lack] = field(default_factory=list)
    """What its VMs need to be started again, and is not there."""
    pools: dict[Path, set[Where]] = field(default_factory=dict)
    """What libvirt's pools list, by folder: the folders that were refreshed last."""
    unfit: list[Finding] = field(default_factory=list)
    """What `probe` finds against every folder."""
    refusal: str = ""
    """What its libvirt says against every definition."""
    kept: dict[Path, str] = field(default_factory=dict)
    """Definitions that were kept, by file."""
    served: dict[str, File] = field(default_factory=dict)
    """What any host reads of another one, by URL."""
    receiving: set[str] = field(default_factory=set)
    """Jobs for which a guest may come in."""
    root: World | None = None
    """The host that this one is a peer of."""

    def at(self, host: str) -> World:
        """Return the world as the host of that name sees it."""
        return self.peers.get(host, self)

    def add_peer(self, name: str) -> World:
        """Add another host with files of its own; what guests were promised, and what was broken, is shared by all."""
        peer = World(
            acknowledged=self.acknowledged,
            violations=self.violations,
            effects=self.effects,
            served=self.served,
            root=self,
        )
        self.peers[name] = peer
        return peer

    # -- files

    def chain(self, path: Where) -> list[Where]:
        """Return the image and what lies below it. A missing file ends the chain, and is a violation, as a loop is."""
        found = self.below(path)
        if found[-1] not in self.files:
            self.violations.append(f"{path} needs {found.pop()}, which is not there")
        elif self.files[found[-1]].backing is not None:
            self.violations.append(f"{path} lies on itself")
        return found

    def below(self, path: Where) -> list[Where]:
        """Return the image and what lies below it, of a chain that may be broken: a missing file is the last one."""
        found: list[Where] = []
        at: Where | None = path
        while at is not None and at not in found:
            found.append(at)
            at = self.files[at].backing if at in self.files else None
        return found

    def content(self, path: Where) -> dict[int, int]:
        """Return what a guest reads of an image: block to stamp."""
        read: dict[int, int] = {}
        for image in reversed(self.chain(path)):
            read.update(self.files[image].blocks)
        return read

    def in_use(self, path: Where) -> str | None:
        """Return the name of a VM that would miss the file; None if none would."""
        for machine in self.machines.values():
            kept = machine.managed.disks if machine.managed is not None else {}
            tops = [*machine.disks.values(), *(machine.definition or {}).values(), *kept.values()]
            if any(path in self.chain(top.path) for top in tops if top.path in self.files):
                return machine.name
        return None

    def open_in(self, path: Where) -> str | None:
        """Return the name of a VM whose QEMU has the file open; None if none has."""
        runs = [(m.name, top.path) for m in self.machines.values() if m.live for top in m.live.disks.values()]
        return next((name for name, top in runs if path in self.chain(top)), None)

    # -- guests

    def machine(self, name: str) -> Machine:
        for machine in self.machines.values():
            if name in (machine.uuid, machine.name):
                return machine
        raise NoSuchVm(vm=name, host="memory")

    def tick(self) -> None:
        """Let each running guest write to each of its disks."""
        for world in (self, *self.peers.values()):
            for machine in world.machines.values():
                if machine.live is not None and machine.power is Power.RUNNING and not machine.halted:
                    for target in machine.disks:
                        if target not in machine.readonly:
                            self.stamps += 1
                            world._write(machine, machine.live, target, self.stamps)

    def _write(self, machine: Machine, live: Live, target: str, stamp: int) -> None:
        block = (stamp * 7) % BLOCKS
        active = live.disks[target].path
        for path in [active, *(m.destination.path for t, m in live.mirrors.items() if t == target)]:
            if path in self.frozen:
                self.violations.append(f"{machine.name} writes to the frozen {path}")
            self.files[path].write(block, stamp)
        self.acknowledged[machine.uuid, target][block] = stamp

    def kill_qemu(self, uuid: str) -> None:
        """Crash a VM's QEMU: the files stay, and the definition if there is one."""
        machine = self.machines[uuid]
        machine.live = None
        machine.halted = False
        if machine.definition is None:
            del self.machines[uuid]

    # -- promises

    def check(self) -> None:
        """Look for broken promises: add what is found to `violations`."""
        self._check_one_copy()
        for world in (self, *self.peers.values()):
            world._check_here()

    def _check_one_copy(self) -> None:
        """Check that at most one copy of a VM can run at this instant."""
        able: Counter[str] = Counter()
        for world in (self, *self.peers.values()):
            able.update(machine.uuid for machine in world.machines.values() if machine.able)
        self.violations.extend(f"{uuid} can run on {count} hosts" for uuid, count in able.items() if count > 1)

    def _check_here(self) -> None:
        for machine in self.machines.values():
            if machine.able:
                for target, image in machine.disks.items():
                    self._check_disk(machine, target, image.path)
        for path, changed in self.frozen.items():
            if path in self.files and self.files[path].changed != changed:
                self.violations.append(f"the frozen {path} was changed")

    def _check_disk(self, machine: Machine, target: str, active: Where) -> None:
        promised = self.acknowledged[machine.uuid, target]
        content = self.content(active)
        if promised.items() <= content.items():
            return
        for block, stamp in promised.items() - content.items():
            if machine.live is None and self._safe_in_state(machine.uuid, target, block, stamp):
                continue
            self.violations.append(f"{machine.name} lost a write to {target}, block {block} of {active}")

    def _safe_in_state(self, uuid: str, disk: str, block: int, stamp: int) -> bool:
        """Would loading a saved state, on disks that still hold it, bring the write back?"""
        return any(
            file.state.content[disk].get(block) == stamp
            and all(path in self.files and self.files[path].changed == n for path, n in file.state.writers.items())
            for file in self.files.values()
            if file.state and not file.state.spent and file.state.uuid == uuid
        )


class InMemory:
    """A world of this process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._lock = RLock()

    @contextmanager
    def here(self) -> Iterator[World]:
        with self._lock:
            yield self.world


class InFile:
    """A world that outlives processes: each visit loads it and saves it, alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_suffix(".lock")

    @contextmanager
    def here(self) -> Iterator[World]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            world = self._load()
            try:
                yield world
            finally:
                self._save(world)
        finally:
            os.close(descriptor)

    def _load(self) -> World:
        try:
            found: World = pickle.loads(self._path.read_bytes())
        except FileNotFoundError:
            return World()
        return found

    def _save(self, world: World) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(pickle.dumps(world))
        fresh.replace(self._path)


def add_machine(
    world: World,
    name: str,
    uuid: str,
    disks: Mapping[str, tuple[tuple[Path, str], ...]],
    power: Power = Power.RUNNING,
    *,
    persistent: bool = True,
) -> Machine:
    """Add a VM whose disks are chains of (path, format), the active image first, filled with stamps."""
    definition = {}
    for target, chain in disks.items():
        below: Path | None = None
        for path, format_ in reversed(chain):
            world.files.setdefault(path, File(format=format_, backing=below))
            below = path
        top, top_format = chain[0]
        definition[target] = Placed(top, top_format)
        world.acknowledged[uuid, target] = {}
        for block in range(BLOCKS):
            world.stamps += 1
            world.files[chain[-1 if block % 2 else 0][0]].blocks[block] = world.stamps
            world.acknowledged[uuid, target][block] = world.stamps
    machine = Machine(name, uuid, definition=dict(definition) if persistent else None)
    if power is not Power.OFF:
        machine.live = Live(dict(definition), power)
    world.machines[uuid] = machine
    return machine
