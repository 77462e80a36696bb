"""What passes between two toy hosts: files served, definitions handed over, guests that migrate while they run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmferry.errors import SavedStateSpent, VmExists
from vmferry.hosts.records import Prefix
from vmferry.hosts.simulator.files import SimulatedFiles
from vmferry.hosts.simulator.world import BLOCK, File, Live, Machine, World
from vmferry.model import Changes, Definition, Lack, Placed, Power, Where, WrittenSnapshot
from vmferry.transfer import Place, Watch


class SimulatedRelocation(SimulatedFiles):
    """The toy host's calls about other hosts, which hosts.interface documents. A definition's XML is JSON here."""

    def definition(self, uuid: str) -> Definition:
        with self._look("definition") as world:
            machine = world.machine(uuid)
            record = {
                "name": machine.name,
                "disks": {target: [str(image.path), image.format] for target, image in machine.disks.items()},
                "nvram": str(machine.nvram) if machine.nvram else None,
                "networks": machine.networks,
            }
            snapshots = tuple(
                WrittenSnapshot(name, json.dumps({t: str(p) for t, p in disks.items()}))
                for name, disks in machine.snapshots.items()
            )
            checkpoints = tuple(WrittenSnapshot(name, "{}") for name in machine.checkpoints)
            return Definition(uuid, json.dumps(record), snapshots, checkpoints, autostart=machine.autostart)

    def mark_of(self, path: Path) -> str:
        with self._look("mark_of") as world:
            return str(world.files[path].changed) if path in world.files else ""

    def serve(self, sources: Sequence[Path | Place]) -> Sequence[Place]:
        return [self._serve(source) for source in sources]

    def _serve(self, source: Path | Place) -> Place:
        with self._act("serve") as (world, _):
            path = source if isinstance(source, Path) else Path(source.at)
            url = f"nbds://{self.name}/{path}"
            if path not in world.files:
                raise self._refuse("serve", f"{path} is not there")
            world.served[url] = world.files[path]
            return Place(url, known_as=f"{self.name}:{path}")

    def serve_growing(self, uuid: str, memory: Path, beyond: int) -> Prefix | None:
        with self._act("serve_growing") as (world, _):
            live = world.machine(uuid).live
            file = world.files.get(memory)
            if live is None or not live.saving or file is None or len(file.blocks) * BLOCK <= beyond:
                return None
            url = f"nbds://{self.name}/beginning{memory}"
            world.served[url] = File(dict(file.blocks), file.format)
            return Prefix(Place(url, known_as=f"{self.name}:{memory}"), len(file.blocks) * BLOCK)

    def end_serving(self) -> None:
        with self._act("end_serving") as (world, _):
            for url in [url for url in world.served if url.startswith(f"nbds://{self.name}/")]:
                del world.served[url]
            world.receiving.discard(self._job)

    def misses(self, definition: Definition, networks: Mapping[str, str]) -> Sequence[str]:
        with self._look("misses") as world:
            named = json.loads(definition.xml)["networks"]
            return [name for name in named if networks.get(name, name) not in world.networks]

    def lacks(self, definition: Definition, changes: Changes) -> Sequence[Lack]:
        with self._look("lacks") as world:
            return list(world.lacks)

    def refresh_pools(self, folders: Sequence[Path]) -> None:
        with self._act("refresh_pools") as (world, _):
            world.pools = {folder: {file for file in world.files if _lies_in(file, folder)} for folder in folders}

    def definition_now(self, uuid: str) -> Definition:
        return self.definition(uuid)

    def lacks_to_start(self, uuid: str) -> Sequence[Lack]:
        with self._look("lacks_to_start") as world:
            return list(world.gone)

    def lacks_to_load(self, uuid: str, memory: Path, changes: Changes) -> Sequence[Lack]:
        with self._look("lacks_to_load") as world:
            return [lack for lack in world.gone if not lack.drive]

    def refusal(self, definition: Definition, changes: Changes) -> str:
        with self._look("refusal") as world:
            return world.refusal

    def content_of(self, path: Path) -> str:
        with self._look("content_of") as world:
            return str(sorted(world.files[path].blocks.items())) if path in world.files else ""

    def announce(self, definition: Definition) -> None:
        with self._act("announce") as (world, _):
            there = world.machines.get(definition.uuid)
            if there is not None:
                if there.placeholder != self._job:
                    raise VmExists(host=self.name, vm=there.name)
                return
            record = json.loads(definition.xml)
            placeholder = Machine(record["name"], definition.uuid, definition={}, placeholder=self._job)
            world.machines[definition.uuid] = placeholder

    def defined(self, uuid: str) -> bool:
        with self._look("defined") as world:
            there = world.machines.get(uuid)
            return there is not None and there.definition is not None

    def announced(self, uuid: str) -> bool:
        with self._look("announced") as world:
            there = world.machines.get(uuid)
            return there is not None and there.placeholder == self._job

    def withdraw(self, uuid: str) -> None:
        with self._act("withdraw") as (world, _):
            there = world.machines.get(uuid)
            if there is not None and there.placeholder == self._job:
                if there.live is not None:
                    world.violations.append(f"{there.name} is withdrawn while it lives")
                del world.machines[uuid]

    def relinquish(self, uuid: str, *, runs: bool) -> None:
        with self._act("relinquish") as (world, middle):
            machine = world.machines.get(uuid)
            if machine is None:
                return
            if machine.live is not None and not runs:
                raise self._refuse("give the VM up", "somebody has started it meanwhile")
            machine.snapshots.clear()
            machine.checkpoints.clear()
            middle()
            machine.definition = None
            if machine.live is None:
                del world.machines[uuid]

    def reclaim(self, definition: Definition) -> None:
        with self._act("reclaim") as (world, middle):
            machine = world.machines.setdefault(definition.uuid, Machine("", definition.uuid))
            self._write_down(machine, definition)
            middle()

    def adopt(self, definition: Definition, changes: Changes) -> None:
        with self._act("adopt") as (world, middle):
            machine = world.machines.setdefault(definition.uuid, Machine("", definition.uuid))
            self._write_down(machine, definition)
            machine.definition = dict(machine.definition or {}) | dict(changes.disks)  # libvirt defines all at once
            middle()
            if machine.nvram is not None:
                machine.nvram = changes.files.get(machine.nvram, machine.nvram)
            for disks in machine.snapshots.values():
                disks.update({target: changes.files.get(path, path) for target, path in disks.items()})
            machine.placeholder = ""

    def _write_down(self, machine: Machine, definition: Definition) -> None:
        record = json.loads(definition.xml)
        machine.name = record["name"]
        machine.definition = {target: Placed(Path(at), format_) for target, (at, format_) in record["disks"].items()}
        machine.nvram = Path(record["nvram"]) if record["nvram"] else None
        machine.autostart = definition.autostart
        machine.networks = record["networks"]
        machine.checkpoints = [each.name for each in definition.checkpoints]
        machine.snapshots = {
            each.name: {target: Path(at) for target, at in json.loads(each.xml).items()}
            for each in definition.snapshots
        }

    def keep_definition(self, definition: Definition, changes: Changes, path: Path) -> None:
        with self._act("keep_definition") as (world, _):
            world.kept[path] = definition.xml

    def clear_out(self, uuid: str) -> None:
        with self._act("clear_out") as (world, _):
            if uuid in world.machines:
                world.violations.append(f"{uuid} is cleared out while it is there")

    def void(self, memory: Path) -> None:
        with self._act("void") as (world, _):
            file = world.files.get(memory)
            if file is None or file.state is None:
                return
            if file.state.spent:
                raise SavedStateSpent(path=memory, host=self.name, job=self._job)
            if any(m.live is not None and m.live.loaded == memory for m in world.machines.values()):
                world.violations.append(f"{memory} is voided while it is loaded")
            file.state = None

    def receive(self, uuid: str) -> str:
        with self._act("receive") as (world, _):
            world.receiving.add(self._job)
            return self.name

    def migrate(self, uuid: str, to: str, there: Changes, watch: Watch) -> None:
        with self._act("migrate") as (world, middle):
            root = self._root(world)
            machine, arriving = world.machine(uuid), root.at(to).machine(uuid)
            live = machine.live
            if live is None:
                raise self._refuse("migrate", f"{machine.name} is not running")
            for target, image in live.disks.items():
                copy = root.at(to).files[there.disks[target].path]
                copy.blocks.update(world.files[image.path].blocks)
                copy.changed += 1
            arriving.live = Live(dict(there.disks), Power.PAUSED, unproved=True)
            live.saving = True
            try:
                middle()
                watch.check()  # the first look, as on a real host: while it goes
            finally:
                live.saving = False
            for target, image in live.disks.items():  # what was written since
                root.at(to).files[there.disks[target].path].blocks.update(world.files[image.path].blocks)
            self._effect(world, "migrate")
            arriving.live.unproved = False
            machine.live = None
            if machine.definition is None:
                del world.machines[uuid]
        watch.check()  # whoever follows may look at the source once more, just as it ends

    def run_of(self, uuid: str) -> str:
        with self._look("run_of") as world:
            live = world.machine(uuid).live
            return "" if live is None else str(live.run)

    def standing_s(self, uuid: str) -> float:
        return 0.1

    def arrived(self, uuid: str) -> bool:
        with self._look("arrived") as world:
            there = world.machines.get(uuid)
            return there is not None and there.live is not None and not there.live.unproved

    @property
    def _job(self) -> str:
        return self._token.job if self._token else ""

    def _root(self, world: World) -> World:
        return world.root or world


def _lies_in(file: Where, folder: Path) -> bool:
    return isinstance(file, Path) and file.parent == folder
