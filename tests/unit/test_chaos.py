"""Many jobs, workers that are killed and frozen again and again: each job ends, exactly once.

VMFERRY_CHAOS_JOBS sets how many jobs (200 in `make long`), VMFERRY_CHAOS_SEED another course.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.chaos import ManagersTormentor, Post, Tormentor, world_file
from tests.support.postgres import cluster
from tests.support.worlds import quick_folder

from vmferry.hosts.simulator.driver import World
from vmferry.manager.limits.slots import HOST_SLOTS
from vmferry.manager.store import Row, Store
from vmferry.model import JobState

pytestmark = pytest.mark.slow


JOBS = int(os.environ.get("VMFERRY_CHAOS_JOBS", "15"))
SEED = int(os.environ.get("VMFERRY_CHAOS_SEED", "1"))
ONCE = ("pivot", "release", "save")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.mark.timeout(3600)
def test_every_job_ends_exactly_once_however_its_worker_dies(tmp_path: Path) -> None:
    tormentor = Tormentor([Post(tmp_path, "state")], SEED, JOBS)
    tormentor.torment()
    print(f"{tormentor.submitted} jobs, {tormentor.kills} kills, {tormentor.freezes} freezes")
    assert tormentor.kills > 0
    rows = list(reversed(Store(f"sqlite:///{tmp_path / 'state' / 'vmferry.db'}").rows()))
    assert_exactly_once(tmp_path, rows)
    assert_order(rows)


@pytest.mark.timeout(3600)
def test_every_job_ends_exactly_once_however_its_managers_die_freeze_and_lose_their_database(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # for the server's user
    with cluster(tmp_path) as server:
        records = server.database("vmferry")
        posts = [Post(tmp_path, name, records) for name in ("alpha", "beta", "gamma")]
        tormentor = ManagersTormentor(posts, SEED, JOBS, server)
        tormentor.torment()
        told = f"{tormentor.kills} kills, {tormentor.freezes} freezes, {tormentor.restarts} restart of PostgreSQL"
        print(f"{tormentor.submitted} jobs, {told}")
        assert tormentor.kills > 0
        assert tormentor.restarts == 1
        rows = list(reversed(Store(records).rows()))
    assert_exactly_once(tmp_path, rows)


def assert_exactly_once(folder: Path, rows: Sequence[Row]) -> None:
    with world_file(folder).here() as world:
        world.check()
        assert world.violations == []
        assert_ended(rows)
        assert_where_the_jobs_say(world, rows)
        assert_once(world)
    assert_slots(rows)


def assert_ended(rows: Sequence[Row]) -> None:
    for row in rows:
        assert row.state in (JobState.DONE, JobState.UNDONE, JobState.FAILED), row.id
        assert row.state is not JobState.FAILED or row.kind == "Cancelled", row.sentence


def assert_where_the_jobs_say(world: World, rows: Sequence[Row]) -> None:
    """Each VM is where its last finished job has put it, and nothing else lies about."""
    places = {
        (row.plan.uuid, disk.target): disk.to for row in rows if row.state is JobState.DONE for disk in row.plan.disks
    }
    for machine in world.machines.values():
        for target, image in machine.disks.items():
            assert image == places.get((machine.uuid, target), image)
        assert machine.definition in (None, machine.disks)
    assert [path for path in world.files if "vmferry-" in str(path)] == []
    assert len(world.files) == sum(len(machine.disks) for machine in world.machines.values())
    assert world.bookmarks == {}


def assert_once(world: World) -> None:
    for effect, times in world.effects.items():
        if effect.split()[1] in ONCE:
            assert times == 1, effect


def assert_slots(rows: Sequence[Row]) -> None:
    """Never more than ten jobs between their start and their end."""
    ran = [row for row in rows if row.started and row.ended]
    for row in ran:
        at_once = [r for r in ran if r.started and r.ended and row.started and r.started <= row.started < r.ended]
        assert len(at_once) <= HOST_SLOTS


def assert_order(rows: Sequence[Row]) -> None:
    """They all need the host's slots, so they start as they were submitted."""
    started = [row.started for row in rows if row.started]
    assert started == sorted(started)
