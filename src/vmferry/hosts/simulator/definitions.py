"""What is written down about the VMs of the toy host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vmferry.hosts.simulator.calls import Caller
from vmferry.hosts.simulator.world import Machine
from vmferry.model import Definition, Placed, Where


class SimulatedDefinitions(Caller):
    """The toy host's calls about definitions, snapshots and checkpoints, which hosts.interface documents."""

    def point(
        self,
        uuid: str,
        disks: Mapping[str, Placed],
        files: Mapping[Path, Path],
        sources: Mapping[str, Sequence[Where]],
    ) -> Sequence[str]:
        with self._act("point") as (world, _):
            machine = world.machine(uuid)
            others = self._point(machine, disks, sources)
            if machine.nvram is not None and machine.nvram in files:
                machine.nvram = files[machine.nvram]
            return others

    def _point(
        self, machine: Machine, disks: Mapping[str, Placed], sources: Mapping[str, Sequence[Where]]
    ) -> list[str]:
        """Change the definition where it names one of the sources. Returns the disks for which it does not."""
        defined = machine.definition
        if defined is None:
            return []
        others = [t for t in disks if t in defined and defined[t].path not in (disks[t].path, *sources.get(t, ()))]
        defined |= {target: placed for target, placed in disks.items() if target in defined and target not in others}
        return others

    def rewrite_snapshots(self, uuid: str, paths: Mapping[Path, Path]) -> None:
        with self._act("rewrite_snapshots") as (world, _):
            for snapshot in world.machines[uuid].snapshots.values() if uuid in world.machines else ():
                for target, path in snapshot.items():
                    snapshot[target] = paths.get(path, path)

    def forget_checkpoints(self, uuid: str) -> None:
        with self._act("forget_checkpoints") as (world, _):
            world.machine(uuid).checkpoints.clear()

    def recall_checkpoints(self, definition: Definition) -> None:
        with self._act("recall_checkpoints") as (world, _):
            world.machine(definition.uuid).checkpoints = [each.name for each in definition.checkpoints]

    def drop_checkpoints(self, definition: Definition) -> None:
        with self._act("drop_checkpoints") as (world, middle):
            machine = world.machine(definition.uuid)
            for each in definition.checkpoints:
                machine.bitmaps.discard(each.name)
            middle()
            machine.checkpoints.clear()

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
