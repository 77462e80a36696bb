"""A real guest's disks move on a host that is reached through its agent; the guest's disks are the judge."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import libvirt
import pytest
from tests.support.namers import file_disk, image, xml_of
from tests.support.seen import HARD, TWO_DISKS, destination, images, nothing_of_ours, power_off
from tests.support.served import ServedHost

from vmferry.lab import GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

pytestmark = pytest.mark.long

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
TECHNOLOGIES = ("live", "quick", "offline")


@pytest.fixture
def served(lab: LabHost, tmp_path: Path) -> Iterator[ServedHost]:
    with ServedHost(lab.at / f"agent-{tmp_path.name}", lab.uri) as agent:
        yield agent


@pytest.fixture
def remote(lab: LabHost, ferry: VmferryCommand, served: ServedHost) -> VmferryCommand:
    """The command, whose default host is the lab's, by its agent; both storages are declared."""
    added = ferry.run("host", "add", "host1", "--address", served.address, "--token", served.token())
    assert added.code == 0, added.err
    for name in ("san1", "san2"):
        declared = ferry.run("storage", "add", name, "--host", "host1", "--path", lab.storage(name))
        assert declared.code == 0, declared.err
    ferry.environment["LIBVIRT_DEFAULT_URI"] = "host1"
    return ferry


@pytest.mark.parametrize("via", TECHNOLOGIES)
def test_a_guest_moves_through_the_agent_and_loses_nothing(
    via: str, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, remote: VmferryCommand
) -> None:
    guest = make_guest(HARD)
    domain = domain_of(guest)
    source = guest.place.images["vda"].parent
    guest.wait_acks(50)
    if via == "offline":
        power_off(guest, domain)
    folder = destination(lab, guest)

    ended = remote.run("migrate-storage", guest.name, "--path", folder, "--via", via)

    assert ended.code == 0, ended.out + ended.err
    moved = {d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}
    assert images(domain, live=False) == moved
    assert list(source.iterdir()) == []
    nothing_of_ours(folder, source)
    if via != "offline":
        guest.wait_acks(50)
        power_off(guest, domain)
    assert guest.verdict(moved).clean, guest.verdict(moved)
    assert remote.receipt(remote.jobs()[0]["id"])["verified"] is True


def test_an_agent_that_is_killed_while_it_copies_goes_on_when_it_is_back(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, remote: VmferryCommand, served: ServedHost
) -> None:
    guest = make_guest(HARD)
    guest.wait_acks(50)
    folder = destination(lab, guest)
    job = remote.detached(guest.name, "--path", folder, "--via", "live", "--limit", "4MiB")
    wait_for(lambda: remote.step(job) == "CopyBase" and list(folder.glob("*.part")), "the copy to begin", 60)

    served.kill()
    wait_for(lambda: "does not answer" in remote.job(job)["progress"]["now"], "the job to notice", 60)
    assert remote.state(job) == "running"
    served.start()
    assert remote.run("job", "limit", job, "none").code == 0

    wait_for(lambda: remote.state(job) == "done", "the job to end", 120, log=served.log)
    power_off(guest, domain_of(guest))
    moved = {d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}
    assert guest.verdict(moved).clean


def test_a_manager_that_is_killed_while_the_agent_copies_finds_the_copy_again(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, remote: VmferryCommand, served: ServedHost
) -> None:
    guest = make_guest(HARD)
    guest.wait_acks(50)
    folder = destination(lab, guest)
    job = remote.detached(guest.name, "--path", folder, "--via", "live", "--limit", "4MiB")
    wait_for(lambda: remote.step(job) == "CopyBase" and list(folder.glob("*.part")), "the copy to begin", 60)

    assert remote.kill_worker()
    assert remote.run("job", "limit", job, "none").code == 0  # any command starts a worker, which goes on with it

    wait_for(lambda: remote.state(job) == "done", "the job to end", 120, log=served.log)
    power_off(guest, domain_of(guest))
    moved = {d.target: folder / guest.place.images[d.target].name for d in TWO_DISKS}
    assert guest.verdict(moved).clean


def test_a_folder_that_was_not_declared_is_refused_before_the_vm_is_touched(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, remote: VmferryCommand, tmp_path: Path
) -> None:
    guest = make_guest(HARD)
    before = images(domain_of(guest))
    escape = destination(lab, guest) / "out"
    escape.symlink_to(tmp_path)
    for folder in (tmp_path, escape, Path("/etc")):
        ended = remote.run("migrate-storage", guest.name, "--path", folder, "--json")
        assert ended.code == 3, ended.out + ended.err
        assert json.loads(ended.out.splitlines()[-1])["kind"] == "FoldersRefused"
    assert images(domain_of(guest)) == before
    assert list(tmp_path.glob("*.img")) == []


def test_all_folders_that_were_not_declared_are_named_at_once_with_what_declares_them(
    lab: LabHost, remote: VmferryCommand, tmp_path: Path
) -> None:
    """Each hop of a chain, and where it goes: not one after the other, and never without a command."""
    base = image(tmp_path / "templates" / "base.qcow2")
    overlay = image(tmp_path / "vms" / "a b.qcow2", base)
    folders = [tmp_path / "vms", tmp_path / "templates", tmp_path / "new"]
    with closing(lab.connect()) as connection:
        domain = connection.defineXML(xml_of("undeclared", file_disk(overlay)))
        try:
            ended = remote.run("migrate-storage", "undeclared", "--path", tmp_path / "new", "--json")
        finally:
            domain.undefine()
    said = json.loads(ended.out.splitlines()[-1])
    assert (ended.code, said["kind"]) == (3, "FoldersRefused")
    commands = [f"`vmferry storage add NAME --host host1 --path {folder}`" for folder in folders]
    assert all(command in said["sentence"] for command in commands), said


def test_an_agent_that_is_told_to_leave_leaves_the_job_to_the_next(
    lab: LabHost, make_guest: MakeGuest, remote: VmferryCommand, served: ServedHost
) -> None:
    guest = make_guest(HARD)
    folder = destination(lab, guest)
    job = remote.detached(guest.name, "--path", folder, "--via", "live", "--limit", "4MiB")
    wait_for(lambda: remote.step(job) == "CopyBase" and list(folder.glob("*.part")), "the copy to begin", 60)

    assert served.stop() == 0
    served.start()
    served.signal(signal.SIGSTOP)
    served.signal(signal.SIGCONT)
    remote.run("job", "limit", job, "none")

    wait_for(lambda: remote.state(job) == "done", "the job to end", 120, log=served.log)
