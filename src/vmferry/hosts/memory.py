"""A host for tests: the whole protocol on a toy world, with a hook in each call to break it there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vmferry.hosts.memory_call import Hook, Killed, Moment
from vmferry.hosts.memory_processors import ProcessorsHost
from vmferry.hosts.memory_relocation import RelocatingHost
from vmferry.hosts.memory_world import BLOCK, BLOCKS, File, InFile, InMemory, Live, Machine, Mirror, SavedState, World
from vmferry.hosts.protocol import Quiesced
from vmferry.model import Changes, Placed, Power, Token
from vmferry.transfer import Watch

__all__ = ["Hook", "InFile", "InMemory", "Killed", "MemoryHost", "MemoryHosts", "Moment", "World"]


class MemoryHosts:
    """Opens hosts on one world. `pace_s` is slept in each call that acts, for tests that kill."""

    def __init__(self, ground: InMemory | InFile, hook: Hook | None = None, pace_s: float = 0.0) -> None:
        self._ground = ground
        self._hook = hook
        self._pace_s = pace_s

    def open(self, connect: str, token: Token | None = None) -> MemoryHost:
        return MemoryHost(self._ground, token, self._hook, self._pace_s, connect)


class MemoryHost(RelocatingHost, ProcessorsHost):
    """Disks, memory and definitions of running VMs; what each call does is told by the protocol."""

    # -- a running VM's disks

    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        with self._act("freeze") as (world, middle):
            machine = world.machine(uuid)
            live = self._alive(machine, "freeze")
            if all(live.disks[target].path == path for target, path in overlays.items()):
                return Quiesced.NO if quiesce_s is None else Quiesced.UNSURE
            quiesced = Quiesced.NO if quiesce_s is None else machine.quiesces
            machine.halted = quiesced is not Quiesced.NO
            middle()
            for target, path in overlays.items():
                base = live.disks[target].path
                world.files[path] = File(format="qcow2", backing=base)
                world.frozen[base] = world.files[base].changed
                self._set_active(machine, target, Placed(path, "qcow2"))
            machine.halted = quiesced is Quiesced.UNSURE
            return quiesced

    def thaw(self, uuid: str, seconds: float) -> bool:
        with self._act("thaw") as (world, _):
            machine = world.machine(uuid)
            machine.slow_thaws -= 1
            machine.halted = machine.halted and machine.slow_thaws >= 0
            return machine.live is None or not machine.halted

    def commit(self, uuid: str, target: str, base: Placed, watch: Watch) -> None:
        watch.check()
        with self._act("commit") as (world, middle):
            machine = world.machine(uuid)
            active = machine.disks[target]
            if active.path == base.path:
                return
            if base.path not in world.chain(active.path):
                raise self._refuse("commit", f"{base.path} does not lie below {active.path}")
            for path in world.chain(active.path):
                world.frozen.pop(path, None)
            with _standing(machine):
                self._merge(world, active.path, base.path, middle)
                self._set_active(machine, target, base)

    def _set_active(self, machine: Machine, target: str, image: Placed) -> None:
        """The definition follows if it agreed with what ran, as libvirt's does."""
        before = machine.disks[target]
        if machine.definition is not None and machine.definition.get(target) == before:
            machine.definition[target] = image
        if machine.live is not None:
            machine.live.disks[target] = image

    def mirror(self, uuid: str, target: str, destination: Path, limit_bytes_s: int | None) -> None:
        with self._act("mirror") as (world, _):
            live = self._alive(world.machine(uuid), "mirror")
            running = live.mirrors.get(target)
            if running is not None and running.destination != destination:
                raise self._refuse("mirror", "another mirror runs")
            if running is None:
                live.mirrors[target] = Mirror(destination)

    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        with self._look("mirrored") as world:
            mirror = self._mirror(world.machine(uuid), target)
            source = world.files[world.machine(uuid).disks[target].path]
            mirror.looks += 1
            blocks = list(source.blocks)[: len(source.blocks) if mirror.looks > 1 else len(source.blocks) // 2]
            for block in blocks:
                world.files[mirror.destination].write(block, source.blocks[block])
            return mirror.looks > 1, len(blocks) * BLOCK, len(source.blocks) * BLOCK

    def mirroring(self, uuid: str, target: str) -> bool:
        with self._look("mirroring") as world:
            live = world.machine(uuid).live
            return live is not None and target in live.mirrors

    def _mirror(self, machine: Machine, target: str) -> Mirror:
        mirror = machine.live.mirrors.get(target) if machine.live else None
        if mirror is None:
            raise self._refuse("look at a mirror", f"{target} of {machine.name} has none")
        return mirror

    def pivot(self, uuid: str, target: str) -> None:
        with self._act("pivot") as (world, _):
            machine = world.machine(uuid)
            live = self._alive(machine, "pivot")
            mirror = self._mirror(machine, target)
            if mirror.looks < 2:
                raise self._refuse("pivot", f"the mirror of {target} is not ready")
            self._effect(world, f"pivot {target}")
            self._set_active(machine, target, Placed(mirror.destination, "qcow2"))
            del live.mirrors[target]

    def end_mirror(self, uuid: str, target: str) -> None:
        with self._act("end_mirror") as (world, _):
            live = world.machine(uuid).live
            if live is not None:
                live.mirrors.pop(target, None)

    def suspend(self, uuid: str) -> None:
        with self._act("suspend") as (world, _):
            self._alive(world.machine(uuid), "suspend").power = Power.PAUSED

    def resume(self, uuid: str) -> None:
        with self._act("resume") as (world, _):
            live = world.machine(uuid).live
            if live is None:
                return
            if live.loaded is not None:
                world.violations.append(f"{uuid} runs before its saved state is spent")
            live.power = Power.RUNNING

    def _alive(self, machine: Machine, action: str) -> Live:
        if machine.live is None:
            raise self._refuse(action, f"{machine.name} is not running")
        return machine.live

    # -- memory

    def save(self, uuid: str, memory: Path, watch: Watch, bytes_s: int | None = None) -> None:
        """One half of its blocks, then the other; the first block is written again at the end."""
        watch.check()
        with self._act("save begin") as (world, _):
            live = self._alive(world.machine(uuid), "save")
            if live.mirrors:
                raise self._refuse("save", "a mirror runs")
            live.saving = True
            world.files[memory] = File(dict.fromkeys(range(BLOCKS // 2), world.calls), "memory")
        watch.check()
        with self._act("save") as (world, middle):
            machine = world.machine(uuid)
            live = self._alive(machine, "save")
            file = world.files[memory]
            for block in (*range(BLOCKS // 2, BLOCKS), 0):
                file.write(block, world.calls)
            middle()
            file.state = _state_of(world, machine, live, file)
            self._effect(world, "save")
            machine.live = None

    def saved(self, uuid: str, memory: Path) -> bool:
        with self._look("saved") as world:
            file, live = world.files.get(memory), world.machine(uuid).live
            if live is not None:
                live.saving = False  # whoever asks waits until what a killed worker had asked for has ended
            if live is not None or file is None or file.state is None:
                return False
            return all(p in world.files and world.files[p].changed == n for p, n in file.state.writers.items())

    def restore(self, uuid: str, memory: Path, changes: Changes) -> None:
        with self._act("restore") as (world, _):
            machine = world.machine(uuid)
            wanted = dict(machine.definition or {}) | dict(changes.disks)
            if machine.live is not None and (machine.live.loaded, machine.live.disks) == (memory, wanted):
                return
            if machine.live is not None:
                raise self._refuse("restore", f"{machine.name} runs already")
            state = self._state(world, memory)
            if state.spent:
                world.violations.append(f"{memory} is loaded though it was released")
            if world.files[memory].blocks != state.memory:
                world.violations.append(f"{memory} is loaded and is not what was saved")
            for target, held in state.content.items():
                if world.content(wanted[target].path) != held:
                    world.violations.append(f"{memory} is loaded on a {target} that is not as it was saved")
            self._effect(world, f"restore {wanted[min(wanted)].path}")
            machine.live = Live(wanted, Power.PAUSED, loaded=memory)
            machine.nvram = changes.files.get(machine.nvram, machine.nvram) if machine.nvram else None

    def release(self, uuid: str, memory: Path, *, run: bool) -> float:
        with self._act("release") as (world, middle):
            machine = world.machine(uuid)
            state = self._state(world, memory)
            if not state.spent:
                self._effect(world, "release")
            state.spent = True
            middle()
            if machine.live is not None:
                machine.live.loaded = None
                machine.live.power = Power.RUNNING if run else Power.PAUSED
            return 0.1

    def spent(self, memory: Path) -> bool:
        with self._look("spent") as world:
            file = world.files.get(memory)
            return file is not None and file.state is not None and file.state.spent

    def unload(self, uuid: str) -> None:
        with self._act("unload") as (world, _):
            machine = world.machines.get(uuid)
            if machine is None:
                return
            if machine.live is not None and machine.live.unproved:
                machine.live = None
            if machine.live is not None and machine.live.loaded is not None:
                if self._state(world, machine.live.loaded).spent:
                    world.violations.append(f"{machine.name} is ended though its saved state is spent")
                machine.live = None

    def _state(self, world: World, memory: Path) -> SavedState:
        file = world.files.get(memory)
        if file is None or file.state is None:
            raise self._refuse("load a saved state", f"{memory} is not a complete one")
        return file.state

    # -- definitions

    def point(self, uuid: str, disks: Mapping[str, Placed], files: Mapping[Path, Path]) -> None:
        with self._act("point") as (world, _):
            machine = world.machine(uuid)
            if machine.definition is None:
                return
            machine.definition |= disks
            if machine.nvram is not None and machine.nvram in files:
                machine.nvram = files[machine.nvram]

    def rewrite_snapshots(self, uuid: str, paths: Mapping[Path, Path]) -> None:
        with self._act("rewrite_snapshots") as (world, _):
            for snapshot in world.machine(uuid).snapshots.values():
                for target, path in snapshot.items():
                    snapshot[target] = paths.get(path, path)

    def make_persistent(self, uuid: str) -> None:
        with self._act("make_persistent") as (world, _):
            machine = world.machine(uuid)
            if machine.definition is None:
                machine.definition = dict(machine.disks)

    def make_transient(self, uuid: str) -> None:
        with self._act("make_transient") as (world, _):
            machine = world.machines.get(uuid)
            if machine is not None and machine.live is not None:
                machine.definition = None


def _state_of(world: World, machine: Machine, live: Live, file: File) -> SavedState:
    actives = {target: image.path for target, image in live.disks.items()}
    return SavedState(
        uuid=machine.uuid,
        power=live.power,
        content={target: world.content(path) for target, path in actives.items()},
        writers={path: world.files[path].changed for path in actives.values()},
        memory=dict(file.blocks),
    )


@contextmanager
def _standing(machine: Machine) -> Iterator[None]:
    """As real hosts may for a commit's pivot: who is killed within leaves a guest that stands."""
    live = machine.live
    if live is None or live.power is not Power.RUNNING:
        yield
        return
    live.power, after = Power.PAUSED, Power.RUNNING
    try:
        yield
    except Killed:
        after = Power.PAUSED
        raise
    finally:
        live.power = after
