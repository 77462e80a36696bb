"""What other people and tools do to a VM of the toy world. Each function returns whether libvirt let them."""

from __future__ import annotations

from pathlib import Path

from vmferry.hosts.simulator.world import File, Live, Machine, SimulatedState, World
from vmferry.model import Placed, Power, Where


def snapshot(world: World, uuid: str) -> bool:
    """`virsh snapshot-create-as VM NAME --disk-only --no-metadata`: a new image on top of each disk."""
    found = _free(world, uuid)
    if found is None:
        return False
    machine, live = found
    for target in [target for target in live.disks if target not in machine.readonly]:
        below = live.disks[target].path
        _run_on(machine, live, target, _on_top(world, target, below))
    return True


def merge(world: World, uuid: str, target: str = "vda") -> bool:
    """`virsh blockcommit VM TARGET --active --pivot`: all that lies above the lowest image goes into it."""
    found = _free(world, uuid)
    if found is None:
        return False
    machine, live = found
    chain = world.chain(live.disks[target].path)
    blocks = world.content(chain[0])
    for path in chain:
        world.frozen.pop(path, None)
    for block, stamp in blocks.items():
        if world.files[chain[-1]].blocks.get(block) != stamp:
            world.files[chain[-1]].write(block, stamp)
    _run_on(machine, live, target, Placed(chain[-1], world.files[chain[-1]].format))
    return True


def pull(world: World, uuid: str, target: str = "vda") -> bool:
    """`virsh blockpull VM TARGET`: all that lies below the active image goes into it."""
    found = _free(world, uuid)
    if found is None:
        return False
    _, live = found
    active = live.disks[target].path
    file = world.files[active]
    if file.backing is None:
        return False
    content = world.content(active)
    file.blocks.update(content)
    file.changed += 1
    file.backing = None
    return True


def attach(world: World, uuid: str) -> bool:
    """`virsh attach-disk VM FILE vdx --persistent`, with a file beside the VM's other disks."""
    found = _free(world, uuid)
    if found is None:
        return False
    machine, live = found
    path = Path("/fast/vms/attached.img")
    world.files[path] = File(format="raw")
    world.acknowledged[uuid, "vdx"] = {}
    live.disks["vdx"] = Placed(path, "raw")
    if machine.definition is not None:
        machine.definition["vdx"] = Placed(path, "raw")
    return True


def detach(world: World, uuid: str, target: str = "vdb") -> bool:
    """`virsh detach-disk VM TARGET --live`."""
    found = _free(world, uuid)
    if found is None or target not in found[1].disks:
        return False
    del found[1].disks[target]
    return True


def managed_save(world: World, uuid: str) -> bool:
    """`virsh managedsave VM`, as libvirt-guests does it when the host is shut down."""
    found = _free(world, uuid)
    if found is None or found[0].definition is None:
        return False
    machine, live = found
    content = {target: world.content(image.path) for target, image in live.disks.items()}
    writers = {image.path: world.files[image.path].changed for image in live.disks.values()}
    machine.managed = SimulatedState(uuid, live.power, content, writers, {}, dict(live.disks))
    machine.live = None
    return True


def redefine(world: World, uuid: str, target: str = "vdb") -> bool:
    """`virsh edit VM`: from its next start on that disk is another file."""
    machine = world.machines.get(uuid)
    if machine is None or machine.definition is None or target not in machine.definition or machine.live is None:
        return False
    path = Path(f"/people/{target}.another")
    world.files[path] = File(format="qcow2")
    machine.definition[target] = Placed(path, "qcow2")
    return True


def snapshot_off(world: World, uuid: str) -> bool:
    """`virsh snapshot-create-as VM NAME --disk-only`, of a VM that is off: its definition names the new images."""
    found = _off(world, uuid)
    if found is None:
        return False
    machine, definition = found
    for target in [target for target in definition if target not in machine.readonly]:
        definition[target] = _on_top(world, target, definition[target].path)
    return True


def start(world: World, uuid: str) -> bool:
    """`virsh start VM`, of a VM that is off and has no managed save."""
    found = _off(world, uuid)
    if found is None or any(image.path not in world.files for image in found[1].values()):
        return False
    machine, definition = found
    machine.live = Live(dict(definition), Power.RUNNING)
    return True


def start_and_stop(world: World, uuid: str) -> bool:
    """`virsh start VM`; some writes later its guest powers off."""
    if not start(world, uuid):
        return False
    for _ in range(6):
        world.tick()
    world.kill_qemu(uuid)
    return True


def undefine(world: World, uuid: str) -> bool:
    """`virsh undefine VM`: a VM that runs goes on."""
    machine = world.machines.get(uuid)
    if machine is None or machine.placeholder or machine.definition is None or machine.managed is not None:
        return False
    machine.definition = None
    if machine.live is None:
        del world.machines[uuid]
    return True


def forget(world: World, uuid: str) -> bool:
    """`virsh destroy VM` and `virsh undefine VM`."""
    found = _free(world, uuid)
    if found is None:
        return False
    del world.machines[uuid]
    return True


def _free(world: World, uuid: str) -> tuple[Machine, Live] | None:
    """Return the VM if it runs and is not mirrored, saved, loaded or migrated; None where libvirt would refuse."""
    machine = world.machines.get(uuid)
    if machine is None or machine.live is None or machine.live.mirrors or machine.live.saving:
        return None
    arriving = machine.live.unproved or bool(machine.placeholder)
    loading = machine.live.loaded is not None or arriving
    return None if loading or machine.power is Power.OFF else (machine, machine.live)


def _off(world: World, uuid: str) -> tuple[Machine, dict[str, Placed]] | None:
    """Return the VM and its definition if it is off, has no managed save and may start here; None otherwise."""
    machine = world.machines.get(uuid)
    if machine is None or machine.live is not None or machine.managed is not None or machine.placeholder:
        return None
    return None if machine.definition is None else (machine, machine.definition)


def _on_top(world: World, target: str, below: Where) -> Placed:
    """Create another person's image on top of this one."""
    path = Path(f"/people/{target}.theirs-{world.calls}")
    world.files[path] = File(format="qcow2", backing=below)
    return Placed(path, "qcow2")


def _run_on(machine: Machine, live: Live, target: str, image: Placed) -> None:
    """Make a disk run on this image; the definition follows if it agreed with what ran, as libvirt's does."""
    if machine.definition is not None and machine.definition.get(target) == live.disks[target]:
        machine.definition[target] = image
    live.disks[target] = image
