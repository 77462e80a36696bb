"""The gate of a host's guests, with a host that tells what the test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from vmferry.errors import HostUnreachable
from vmferry.hosts.libvirt.load import stalled_s
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.lab.programs import wait_for
from vmferry.manager.limits.guest_backoff import START_BYTES_S
from vmferry.manager.limits.sampler import Sampler
from vmferry.model import DiskWaits, LinkCount, Load

MIB = 1 << 20


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "guests of memory"]


@contextmanager
def sampler(world: World) -> Iterator[Sampler]:
    made = Sampler("memory", lambda: SimulatedHost(InMemory(world)))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_it_looks_only_while_somebody_moves_something() -> None:
    with sampler(World()) as watching:
        assert threads() == []
        watching.gate.take(1000, lambda: None)
        assert len(threads()) == 1
        wait_for(lambda: threads() == [], "the thread to end by itself", 60)
        watching.gate.take(1000, lambda: None)
        assert len(threads()) == 1
    assert threads() == []


def test_a_running_guest_lets_a_copy_begin_softly() -> None:
    world = World(load=Load(0.0, (DiskWaits("web01", "uuid", "vda", 1000, 2.0),)))
    with sampler(world) as watching:
        watching.gate.take(1000, lambda: None)
        wait_for(lambda: watching.gate.limit_bytes_s == START_BYTES_S, "a soft beginning")
    assert watching.gate.limit_bytes_s is None, "nobody is held back by who does not look any more"


def test_a_host_that_does_not_answer_holds_nobody_back() -> None:
    asked = threading.Event()

    def away() -> SimulatedHost:
        asked.set()
        raise HostUnreachable(host="memory", reason="it is off")

    watching = Sampler("memory", away)
    try:
        watching.gate.give(MIB, "what was found before")
        watching.gate.moved(1000)
        assert asked.wait(30)
        wait_for(lambda: watching.gate.limit_bytes_s is None, "the gate to open")
        assert watching.gate.says == ""
    finally:
        watching.close()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("some avg10=0.23 avg60=8.67 avg300=11.47 total=81877956\nfull avg10=0.22 total=67522028\n", 81.877956),
        ("full avg10=0.22 avg60=7.45 avg300=9.41 total=67522028\n", None),
        ("", None),
    ],
)
def test_pressure_is_read_as_the_kernel_writes_it(text: str, seconds: float | None, tmp_path: Path) -> None:
    told = tmp_path / "io"
    told.write_text(text)
    assert stalled_s(told) == seconds
    assert stalled_s(tmp_path / "missing") is None


@pytest.mark.slow
@pytest.mark.parametrize("crosses", ["crosses", "stays"])
def test_what_crosses_a_link_that_others_fill_gives_way_and_what_stays_does_not(crosses: str) -> None:
    world = World(load=Load(0.0, link=LinkCount(0, 0, 100 * MIB)))
    watching = Sampler("memory", lambda: filling(world), crosses=crosses == "crosses")

    def gave_way() -> bool:
        watching.gate.moved(MIB // 4)
        return "giving way on the link: others use" in watching.gate.says

    def looked_often() -> bool:
        watching.gate.moved(MIB // 4)
        return world.load.link is not None and world.load.link.sent_bytes > 500 * MIB

    try:
        wait_for(gave_way if crosses == "crosses" else looked_often, "the looks", 60)
        assert (watching.gate.says == "") == (crosses == "stays")
    finally:
        watching.close()


def filling(world: World) -> SimulatedHost:
    """At each look 90 MiB more have been sent; ours is little of it."""
    link = world.load.link
    assert link is not None
    world.load = replace(world.load, link=replace(link, sent_bytes=link.sent_bytes + 90 * MIB))
    return SimulatedHost(InMemory(world))
