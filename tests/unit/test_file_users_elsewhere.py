"""Who else needs a file: other jobs, and other hosts that have the same storage, perhaps at another place."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.worlds import DESTINATION, FAR, SOURCE, UUID, make_world

from vmferry.errors import HostUnreachable
from vmferry.hosts.interface import Host
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, World
from vmferry.hosts.simulator.world import File, add_machine
from vmferry.manager.fleet.file_users import FleetFileUsers
from vmferry.manager.jobs.service import Jobs
from vmferry.model import FINAL, FencingToken, FileUser, JobState, MoveRequest, Power, UserKind
from vmferry.model.fleet import StorageView

BASE = SOURCE / "guest-b-base.qcow2"
THERE = Path("/mounted/elsewhere")
STORAGES = (
    StorageView("fast", "memory", str(SOURCE), "one marker"),
    StorageView("same", FAR, str(THERE), "one marker"),
    StorageView("other", FAR, str(SOURCE), "another marker"),
)


class NoJobs:
    """A store without jobs."""

    def rows(self, _states: object) -> list[object]:
        return []


class Two:
    """Hosts on one world, of which one may be away."""

    def __init__(self, world: World, *, away: bool = False) -> None:
        self._ground = InMemory(world)
        self._away = away

    def open(self, connect: str, token: FencingToken | None = None) -> Host:
        if self._away and connect == FAR:
            raise HostUnreachable(host=connect, reason="its link is cut")
        return SimulatedHost(self._ground, token, name=connect)


def asked(world: World, *, away: bool = False) -> list[FileUser]:
    hosts = Two(world, away=away)
    ask = FleetFileUsers(hosts, NoJobs(), lambda: STORAGES).asking()  # type: ignore[arg-type]
    own = ("VM guest", f"the image {SOURCE / 'guest-b.qcow2'}")
    return [user for user in ask(hosts.open("memory"), [BASE], [SOURCE]) if user.who not in own]


def test_another_hosts_vm_needs_a_file_of_a_storage_that_both_have_under_its_own_name_for_it() -> None:
    world = make_world(Power.OFF)
    far = world.at(FAR)
    far.files[THERE / BASE.name] = File(format="qcow2")
    add_machine(far, "clone", UUID.replace("1", "7"), {"vda": ((THERE / BASE.name, "qcow2"),)}, Power.OFF)
    (user,) = asked(world)
    assert (user.kind, user.file) == (UserKind.VM, BASE)
    assert user.who == f"VM clone on {FAR}"


def test_an_image_that_another_host_sees_is_told_by_the_name_that_it_has_here() -> None:
    world = make_world(Power.OFF)
    world.at(FAR).files[THERE / "x.qcow2"] = File(format="qcow2", backing=THERE / BASE.name)
    (user,) = asked(world)
    assert (user.kind, user.id) == (UserKind.IMAGE, str(SOURCE / "x.qcow2"))


def test_a_file_of_the_same_path_on_another_storage_is_another_file() -> None:
    world = make_world(Power.OFF)
    add_machine(world.at(FAR), "clone", UUID.replace("1", "7"), {"vda": ((BASE, "qcow2"),)}, Power.OFF)
    assert asked(world) == []


def test_a_host_that_has_the_same_storage_and_does_not_answer_counts_as_a_user_and_is_named() -> None:
    (user,) = asked(make_world(Power.OFF), away=True)
    assert user.kind is UserKind.UNKNOWN
    assert FAR in str(user)
    assert "its link is cut" in str(user)


@pytest.mark.parametrize("way", ["--remove-bases", ""])
def test_a_base_that_another_hosts_vm_needs_stays_and_the_receipt_names_it(way: str, tmp_path: Path) -> None:
    world = make_world(Power.OFF)
    far = world.at(FAR)
    far.files[THERE / BASE.name] = File(format="qcow2")
    add_machine(far, "clone", UUID.replace("1", "7"), {"vda": ((THERE / BASE.name, "qcow2"),)}, Power.OFF)
    jobs = Jobs(tmp_path, Two(world), storages=lambda: STORAGES)
    jobs.start()
    try:
        request = MoveRequest("guest", "memory", path=DESTINATION, remove_bases=bool(way))
        id_ = jobs.submit(request).id
        version = 0
        while (view := jobs.get(id_)).state not in FINAL:
            version, view = jobs.changed(id_, version, 10)
        assert (view.state, view.sentence) == (JobState.DONE, "")
        fates = {str(source.path): (source.fate.value, source.why) for source in jobs.receipt(id_).sources}
    finally:
        jobs.close()
    assert BASE in world.files
    assert SOURCE / "guest-b.qcow2" not in world.files
    assert fates[str(BASE)][0] == "stays"
    assert f"VM clone on {FAR}" in fates[str(BASE)][1]
