"""How many images a chain may have: libvirt's own limits, with the overlays that a move adds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.worlds import DESTINATION, FAR, UUID, Bench, Scenario, make_world

from vmferry import preflight
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.hosts.simulator.world import File
from vmferry.model import Finding, JobState, MoveRequest, Placed, Plan, Power, Technology
from vmferry.preflight.chains import deepest

DEBIAN_12, DEBIAN_13, FORKY = 9_000_000, 11_003_000, 12_008_000


def planned(images: int, libvirt: int, power: Power = Power.RUNNING, far: int = 0) -> Plan:
    """Of a move of a VM on a chain of so many images, on a host with this libvirt; to one with `far`."""
    world = make_world(power)
    world.platform = replace(world.platform, libvirt=libvirt)
    world.at(FAR).platform = replace(world.platform, libvirt=far or libvirt)
    _deepen(world, images)
    ground = InMemory(world)
    host = SimulatedHost(ground)
    request = MoveRequest("guest", "memory", path=DESTINATION, to=FAR if far else None)
    return preflight.plan(request, host, SimulatedHost(ground, name=FAR) if far else host, {})


def _deepen(world: World, images: int) -> None:
    below: Path | None = None
    for number in range(images):
        at = Path(f"/fast/chain-{number}.qcow2")
        world.files[at] = File(format="qcow2", backing=below)
        below = at
    assert below is not None
    machine = world.machine(UUID)
    top = Placed(below, "qcow2")
    if machine.definition is not None:
        machine.definition["vda"] = top
    if machine.live is not None:
        machine.live.disks["vda"] = top


@pytest.mark.parametrize(
    ("libvirt", "images", "fits"),
    [
        (DEBIAN_12, 198, True),
        (DEBIAN_12, 199, False),
        (DEBIAN_13, 22, True),
        (DEBIAN_13, 23, False),
        (DEBIAN_13, 25, False),
        (FORKY, 40, True),
        (10_007_000, 40, True),
    ],
)
def test_a_chain_that_is_too_deep_with_its_overlays_is_refused_with_a_cure(
    libvirt: int, images: int, *, fits: bool
) -> None:
    blockers = planned(images, libvirt).blockers
    assert (blockers == ()) is fits
    assert fits or "virsh blockpull 'guest' vda" in blockers[0].cure
    assert fits or f"is a chain of {images} images, a move adds 2, and libvirt" in blockers[0].what


def test_a_vm_that_is_off_needs_no_overlays() -> None:
    assert planned(24, DEBIAN_13, Power.OFF).blockers == ()
    (blocker,) = planned(25, DEBIAN_13, Power.OFF).blockers
    assert "a chain of 25 images, and libvirt" in blocker.what


def test_the_other_hosts_libvirt_has_to_bear_it_too() -> None:
    found = [finding.what for finding in planned(40, DEBIAN_12, far=DEBIAN_13).blockers]
    assert any(f"of {FAR} bears 24" in what for what in found)
    assert planned(10, DEBIAN_12, far=DEBIAN_13).deepest == deepest(DEBIAN_13) == 24


@pytest.mark.parametrize("most", (200, 4, 3))
def test_rounds_end_before_the_chain_is_deeper_than_libvirt_bears(most: int) -> None:
    bench = Bench(Scenario(Technology.QUICK, Power.RUNNING, rounds=8))
    bench.plan = replace(bench.plan, deepest=most)
    deep: list[int] = []
    bench.hook = lambda _moment, world: deep.append(
        max(len(world.chain(image.path)) for image in world.machine(UUID).disks.values())
    )
    assert bench.run() is JobState.DONE
    assert max(deep) == min(most, 5)


def _blocker_of(*images: Path) -> Finding:
    """What stands in the way of moving a VM whose disk lies on these, lowest first, and those on a plain chain."""
    world = make_world(Power.RUNNING)
    _deepen(world, 1)
    below = Path("/fast/chain-0.qcow2")
    for image in images:
        world.files[image] = File(format="qcow2", backing=below)
        below = image
    live = world.machine(UUID).live
    assert live is not None
    live.disks["vda"] = Placed(below, "qcow2")
    host = SimulatedHost(InMemory(world))
    plan = preflight.plan(MoveRequest("guest", "memory", path=DESTINATION), host, host, {})
    [found] = [finding for finding in plan.blockers if "abcd2345" in finding.what]
    return found


def test_a_disk_on_an_overlay_of_a_job_that_this_manager_does_not_know_is_refused_with_its_id() -> None:
    found = _blocker_of(Path("/fast/vda.img.vmferry-abcd2345.r1.qcow2"))
    assert "disk vda lies on an overlay of job abcd2345" in found.what
    assert "vmferry job cancel abcd2345" in found.cure
    assert "virsh blockcommit 'guest' vda --base '/fast/chain-0.qcow2' --active --pivot" in found.cure


def test_a_clone_of_an_overlay_that_stayed_is_never_told_to_be_merged_into_what_others_need() -> None:
    found = _blocker_of(Path("/fast/vda.img.vmferry-abcd2345.r0.qcow2"), Path("/fast/clone.qcow2"))
    assert "virsh blockpull 'guest' vda" in found.cure
    assert "blockcommit" not in found.cure
