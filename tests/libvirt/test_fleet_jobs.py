"""Many relocations between two hosts at once, by one manager and by several over PostgreSQL."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from os import kill
from pathlib import Path
from typing import Any

import pytest
from tests.support.fleets import INSIDE_URI, ManagedLab, managed
from tests.support.guests import MOVING, MakeGuestOn
from tests.support.postgres import Cluster, cluster
from tests.support.seen import nothing_of_ours

from vmferry.lab import Lab, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import ENDS, VmferryCommand
from vmferry.manager.limits.slots import HOST_SLOTS
from vmferry.model import FINAL

pytestmark = pytest.mark.long

JOBS = 12
SMALL = replace(
    MOVING, disks=tuple(replace(disk, size_mib=min(disk.size_mib, 32)) for disk in MOVING.disks), rate=5, dirty_mib_s=0
)
SEED = 4


@pytest.mark.timeout(900)
def test_of_twelve_jobs_between_two_hosts_ten_run_at_once_and_then_the_rest(
    two_hosts: Lab, make_guest_on: MakeGuestOn, tmp_path: Path
) -> None:
    one, two = two_hosts.hosts
    with managed(two_hosts, tmp_path.name) as fleet:
        jobs = []
        for number in range(JOBS):
            here, there = (one, two) if number % 2 else (two, one)
            guest = make_guest_on(here, replace(SMALL, name=f"many {number}"))
            jobs.append((guest, there, detached(fleet, guest, there, "--limit", "64KiB")))
        states = {job["id"]: job["state"] for job in fleet.manager.jobs()}
        assert [states[id_] for _, _, id_ in jobs] == ["running"] * HOST_SLOTS + ["queued"] * (JOBS - HOST_SLOTS)

        for _, _, id_ in jobs:
            assert fleet.manager.run("job", "limit", id_, "none").code == 0
        recovered = fleet.manager.run("recover", deadline_s=600)
        assert recovered.code == 0, recovered.out

        told = [fleet.manager.job(id_) for _, _, id_ in jobs]
        assert [job["state"] for job in told] == ["done"] * JOBS
        assert most_at_once(told) == HOST_SLOTS
        for guest, there, _ in jobs:
            assert_it_runs(guest, there)
            guest.remove()


@pytest.mark.timeout(1800)
def test_relocations_end_once_however_their_managers_die_freeze_and_lose_their_database(
    two_hosts: Lab, make_guest_on: MakeGuestOn, tmp_path: Path
) -> None:
    one, two = two_hosts.hosts
    chance = random.Random(SEED)
    with several_managers(two_hosts, tmp_path.name) as (fleet, managers, server):
        guests = [make_guest_on(one, replace(SMALL, name=f"chaos {number}")) for number in range(4)]
        at = dict.fromkeys(range(len(guests)), one)
        for round_ in range(4):
            moved = {}
            for number, guest in enumerate(guests):
                there = two if at[number] is one else one
                via = chance.choice(["quick", "live"])
                words = ("--via", via, "--max-pause", "60s", "--limit", "4MiB")
                moved[number] = (there, detached(by(fleet, chance.choice(managers)), guest, there, *words))
            strike(managers, server, chance, round_)
            for number, (there, id_) in moved.items():
                told = ended(managers, id_)
                assert told["state"] == "done", told
                assert sum(step["step"] == "Retire" and step["ok"] is True for step in told["journal"]) == 1
                assert_it_runs(guests[number], there, keep_writing=True)
                at[number] = there
        for guest in guests:
            guest.stop_writing()
            assert guest.verdict().clean, guest.verdict()
            assert guest.errors() == []


def strike(managers: Sequence[VmferryCommand], server: Cluster, chance: random.Random, round_: int) -> None:
    """Kill two managers, and by turns freeze one, restart the database, or kill the third too."""
    victims = chance.sample(list(managers), 3)
    if round_ % 3 == 0:
        pid = victims[2].worker_pid
        assert pid is not None
        kill(pid, signal.SIGSTOP)
        try:
            look(victims[0], chance)
            wait_for(lambda: not _acts(victims[0], victims[2]), "others to take its jobs over", 120)
        finally:
            kill(pid, signal.SIGCONT)
    elif round_ % 3 == 1:
        server.restart()
    else:
        victims[2].kill_worker()
    for victim in victims[:2]:
        look(victim, chance)
        victim.kill_worker()
    for manager in managers:
        manager.run("jobs")


def look(manager: VmferryCommand, chance: random.Random) -> None:
    """A few commands' time."""
    for _ in range(chance.randint(1, 4)):
        manager.run("jobs")


def _acts(asked: VmferryCommand, other: VmferryCommand) -> bool:
    """Does a job still belong to that manager?"""
    name = (other.state_folder / "manager").read_text().strip()
    return any(job["manager"] == name and job["state"] not in FINAL for job in asked.jobs())


def ended(managers: Sequence[VmferryCommand], id_: str) -> dict[str, Any]:
    with suppress(AssertionError):
        wait_for(lambda: managers[0].job(id_)["state"] in ENDS, f"job {id_}", 240)
    return managers[0].job(id_)


@contextmanager
def several_managers(lab: Lab, name: str) -> Iterator[tuple[ManagedLab, list[VmferryCommand], Cluster]]:
    """Agents, three managers of one authority, and their database."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmferry-postgres-")))
        folder.chmod(0o755)  # for the server's user
        server = stack.enter_context(cluster(folder))
        records = server.database("vmferry")
        fleet = stack.enter_context(managed(lab, name, records))
        managers = [fleet.manager]
        for number in (2, 3):
            state = fleet.manager.state_folder.with_name(f"state-{name}-{number}")
            state.mkdir(mode=0o700)
            shutil.copytree(fleet.manager.state_folder / "authority", state / "authority")
            other = VmferryCommand(state, INSIDE_URI, lab.manager.inside(), records, "foreground")
            managers.append(stack.enter_context(other))
            assert other.run("jobs").code == 0
        yield fleet, managers, server


def by(fleet: ManagedLab, manager: VmferryCommand) -> ManagedLab:
    """The same hosts, as another manager of theirs."""
    return ManagedLab(fleet.lab, manager, fleet.agents)


def detached(fleet: ManagedLab, guest: LabGuest, to: LabHost, *words: str) -> str:
    """To the other one of the host's two storages."""
    storage = "san2" if "san1" in Path(next(iter(guest.images().values()))).parts else "san1"
    folder = to.storage(storage) / guest.name
    folder.mkdir(exist_ok=True)
    return fleet.detached(guest, to, "--path", folder, *words)


def most_at_once(jobs: Sequence[Mapping[str, Any]]) -> int:
    """How many were between their first step and their end when one more began."""
    spans = [(str(job["journal"][0]["begun"]), str(job["ended"])) for job in jobs]
    return max(sum(begun <= moment < end for begun, end in spans) for moment, _ in spans)


def assert_it_runs(guest: LabGuest, there: LabHost, *, keep_writing: bool = False) -> None:
    """There and nowhere else, with nothing lost and nothing of ours beside it."""
    before = guest.host
    assert guest.runs_on() == [there.name]
    guest.moved_to(there)
    guest.wait_acks(3)
    for host, storage in ((before, "san1"), (before, "san2"), (there, "san1"), (there, "san2")):
        if (folder := host.storage(storage) / guest.name).exists():
            nothing_of_ours(folder)
    if not keep_writing:
        guest.stop_writing()
        assert guest.verdict().clean, guest.verdict()
