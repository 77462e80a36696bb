"""A host for tests: all of hosts.interface on a toy world, with a hook in each call to break it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmferry.errors import StartedOnOverlay
from vmferry.hosts.records import GuestClock, Quiesced
from vmferry.hosts.simulator.calls import Hook, Killed, Moment
from vmferry.hosts.simulator.cpu import SimulatedCpus
from vmferry.hosts.simulator.definitions import SimulatedDefinitions
from vmferry.hosts.simulator.relocation import SimulatedRelocation
from vmferry.hosts.simulator.world import (
    BLOCK,
    BLOCKS,
    File,
    InFile,
    InMemory,
    Live,
    Machine,
    SimulatedMirror,
    SimulatedState,
    World,
)
from vmferry.model import Changes, FencingToken, Placed, Power
from vmferry.model.chains import runs_of
from vmferry.transfer import Watch

__all__ = ["Hook", "InFile", "InMemory", "Killed", "Moment", "SimulatedHost", "SimulatedHosts", "World"]


STOOD_S = 0.1
"""Seconds that a guest stands until its memory is loaded, and that its clock stands with it."""


class SimulatedHosts:
    """Opens hosts on one world. Each call that acts sleeps for `pace_s`, for tests that kill the process."""

    def __init__(self, ground: InMemory | InFile, hook: Hook | None = None, pace_s: float = 0.0) -> None:
        self._ground = ground
        self._hook = hook
        self._pace_s = pace_s

    def open(self, connect: str, token: FencingToken | None = None) -> SimulatedHost:
        return SimulatedHost(self._ground, token, self._hook, self._pace_s, connect)


class SimulatedHost(SimulatedDefinitions, SimulatedRelocation, SimulatedCpus):
    """The toy host: its calls about running VMs' disks and memory are here; hosts.interface documents them all."""

    # -- a running VM's disks

    def freeze(self, uuid: str, overlays: Mapping[str, Path], quiesce_s: float | None) -> Quiesced:
        with self._act("freeze") as (world, middle):
            machine = world.machine(uuid)
            live = self._alive(machine, "freeze")
            if gone := [target for target in overlays if target not in live.disks]:
                raise self._refuse("freeze", f"{machine.name} has no disk {gone[0]}")
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

    def set_clock(self, uuid: str, stood_s: float, seconds: float) -> GuestClock | None:
        with self._act("set_clock") as (world, _):
            machine = world.machine(uuid)
            if machine.live is None or not machine.agent:
                return None
            before_s, machine.behind_s = machine.behind_s, 0.0
            return GuestClock(before_s, 0.0)

    def unfreeze(
        self,
        uuid: str,
        target: str,
        overlays: Sequence[Path],
        base: Placed,
        watch: Watch,
        memory: Path | None = None,
        *,
        unmerged: bool = False,
    ) -> Placed:
        watch.check()
        with self._act("unfreeze") as (world, middle):
            machine = world.machines.get(uuid)
            own = [path for path in overlays if path in world.files]
            if memory is not None:
                top = world.files[memory].state.disks[target]  # type: ignore[union-attr] # who asks has looked
                named = ((machine and machine.definition) or {}).get(target, top)
                if named.path not in own and any(path in own for path in world.chain(named.path)):
                    top = named  # a snapshot that somebody took since lies on the overlays
                home = self._fold_out(world, top, own, base, middle)
                self._renew(world, memory)
                self._point(world.machine(uuid), {target: home}, {target: overlays})
                return home
            if machine is None or target not in machine.disks:
                home = self._fold_out(world, Placed(own[0], "qcow2"), own, base, middle) if own else base
                if machine is not None:
                    self._point(machine, {target: home}, {target: overlays})
                return home
            if machine.live is None:
                return self._unfreeze_off(world, machine, target, own, base, middle, unmerged=unmerged)
            active = machine.live.disks[target]
            started = machine.live.started_on.get(target)
            ours = any(path in own for path in world.chain(active.path))
            if ours and started is not None and base.path in world.chain(started)[1:]:
                raise StartedOnOverlay(host=self.name, vm=machine.name, path=started, reason="Permission denied")
            with _standing(machine):
                home = self._fold_out(world, active, own, base, middle)
                if home != active:
                    self._set_active(machine, target, home)
            self._point(machine, {target: home}, {target: overlays})
            return home

    def _unfreeze_off(
        self,
        world: World,
        machine: Machine,
        target: str,
        own: Sequence[Path],
        base: Placed,
        middle: Callable[[], None],
        *,
        unmerged: bool,
    ) -> Placed:
        """Merge a stopped VM's overlays: those of its managed save, then of its definition, else those nobody names.

        Returns what the disk lies on then.
        """
        named = [disks for disks in (machine.managed and machine.managed.disks, machine.definition) if disks]
        tops = [disks for disks in named if any(path in own for path in world.chain(disks[target].path))]
        home = base
        for disks in tops:
            disks[target] = home = self._fold_out(world, disks[target], own, base, middle)
        at_home = [disks for disks in named if target in disks and base.path in world.chain(disks[target].path)]
        if not tops and at_home and not unmerged:
            return at_home[0][target]  # taken out before, and written to since
        if not tops and own:
            home = self._fold_out(world, Placed(own[0], "qcow2"), own, base, middle)
        return home

    def _fold_out(
        self, world: World, top: Placed, own: Sequence[Path], base: Placed, middle: Callable[[], None]
    ) -> Placed:
        """Merge each run of the job's overlays in a chain into what lies below it. Returns the chain's new top."""
        while runs := runs_of([str(path) for path in world.chain(top.path)], [str(path) for path in own]):
            chain = world.chain(top.path)
            first, last = runs[0]
            below = chain[last] if last < len(chain) else base.path
            world.files[chain[last - 1]].backing = below
            for path in (chain[first], below):
                world.frozen.pop(path, None)
            self._merge(world, chain[first], below, middle)
            if first:
                world.files[chain[first - 1]].backing = below
            else:
                top = base if below == base.path else Placed(below, world.files[below].format)
        return top

    def _set_active(self, machine: Machine, target: str, image: Placed) -> None:
        """Make a disk run on this image; the definition follows if it agreed with what ran, as libvirt's does."""
        before = machine.disks[target]
        if machine.definition is not None and machine.definition.get(target) == before:
            machine.definition[target] = image
        if machine.live is not None:
            machine.live.disks[target] = image

    def mirror(self, uuid: str, target: str, destination: Placed, limit_bytes_s: int | None) -> None:
        with self._act("mirror") as (world, _):
            live = self._alive(world.machine(uuid), "mirror")
            running = live.mirrors.get(target)
            if running is not None and running.destination != destination:
                raise self._refuse("mirror", "another mirror runs")
            if running is None:
                live.mirrors[target] = SimulatedMirror(destination)

    def mirrored(self, uuid: str, target: str) -> tuple[bool, int, int]:
        with self._look("mirrored") as world:
            mirror = self._mirror(world.machine(uuid), target)
            source = world.files[world.machine(uuid).disks[target].path]
            mirror.looks += 1
            blocks = list(source.blocks)[: len(source.blocks) if mirror.looks > 1 else len(source.blocks) // 2]
            for block in blocks:
                world.files[mirror.destination.path].write(block, source.blocks[block])
            return mirror.looks > 1, len(blocks) * BLOCK, len(source.blocks) * BLOCK

    def mirroring(self, uuid: str, target: str) -> bool:
        with self._look("mirroring") as world:
            live = world.machine(uuid).live
            return live is not None and target in live.mirrors

    def _mirror(self, machine: Machine, target: str) -> SimulatedMirror:
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
            self._set_active(machine, target, mirror.destination)
            del live.mirrors[target]

    def end_mirror(self, uuid: str, target: str, destination: Placed) -> None:
        with self._act("end_mirror") as (world, _):
            machine = world.machines.get(uuid)
            live = machine.live if machine is not None else None
            if live is not None and target in live.mirrors and live.mirrors[target].destination == destination:
                del live.mirrors[target]

    def suspend(self, uuid: str) -> bool:
        with self._act("suspend") as (world, _):
            live = self._alive(world.machine(uuid), "suspend")
            before, live.power = live.power, Power.PAUSED
            return before is Power.RUNNING

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

    def save(self, uuid: str, memory: Path, watch: Watch, bytes_s: int | None = None) -> bool:
        """Save one half of the memory's blocks, then the other; the first block is written again at the end."""
        watch.check()
        with self._act("save begin") as (world, _):
            live = self._alive(world.machine(uuid), "save")
            if world.machine(uuid).definition is None:
                raise self._refuse("save", "cannot halt after transient domain snapshot")
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
            if machine.definition is None:
                del world.machines[uuid]
        return False

    def saved(self, uuid: str, memory: Path) -> bool:
        with self._look("saved") as world:
            file = world.files.get(memory)
            machine = world.machines.get(uuid)
            if machine is not None and machine.live is not None:
                machine.live.saving = False  # whoever asks waits until what a killed worker had asked for has ended
                return False
            if file is None or file.state is None or file.state.spent:
                return False
            machine, disks = (machine, machine.disks) if machine else (file.state.machine, file.state.disks)
            assert machine is not None
            written = [image.path for target, image in disks.items() if target not in machine.readonly]
            return all(p in world.files and world.files[p].changed == file.state.writers.get(p) for p in written)

    def define_saved(self, uuid: str, memory: Path) -> None:
        with self._act("define_saved") as (world, _):
            state = self._state(world, memory)
            assert state.machine is not None
            world.machines[uuid] = state.machine
            state.machine.definition = dict(state.disks)

    def restore(self, uuid: str, memory: Path, changes: Changes) -> Sequence[str]:
        with self._act("restore") as (world, _):
            machine = world.machine(uuid)
            wanted = dict(machine.definition or {}) | dict(changes.disks)
            if machine.live is not None and (machine.live.loaded, machine.live.disks) == (memory, wanted):
                return ()
            if [lack for lack in world.gone if not lack.drive]:
                raise self._refuse("restore", "it is gone")
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
            machine.behind_s += STOOD_S
            machine.nvram = changes.files.get(machine.nvram, machine.nvram) if machine.nvram else None
            return [lack.what for lack in world.gone]

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
            return STOOD_S

    def spent(self, memory: Path) -> bool:
        with self._look("spent") as world:
            file = world.files.get(memory)
            return file is not None and file.state is not None and file.state.spent

    def renew(self, memory: Path) -> None:
        with self._act("renew") as (world, _):
            self._renew(world, memory)

    def _renew(self, world: World, memory: Path) -> None:
        self._state(world, memory).writers = {path: file.changed for path, file in world.files.items()}

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

    def _state(self, world: World, memory: Path) -> SimulatedState:
        file = world.files.get(memory)
        if file is None or file.state is None:
            raise self._refuse("load a saved state", f"{memory} is not a complete one")
        return file.state


def _state_of(world: World, machine: Machine, live: Live, file: File) -> SimulatedState:
    actives = {target: image.path for target, image in live.disks.items()}
    return SimulatedState(
        uuid=machine.uuid,
        power=live.power,
        content={target: world.content(path) for target, path in actives.items()},
        writers={path: world.files[path].changed for path in actives.values()},
        memory=dict(file.blocks),
        disks=dict(live.disks),
        machine=machine,
    )


@contextmanager
def _standing(machine: Machine) -> Iterator[None]:
    """Pause the VM within, as real hosts may for a commit's pivot; a process killed within leaves it paused."""
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
