"""The guest agent at the freeze: one that answers, one that does not, one that answers too late, and kills amid it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest
from tests.support.job_states import step_s
from tests.support.seen import destination, nothing_of_ours, power_off, run

from vmferry.errors import LabNeeds
from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
DISKS = (DiskSpec("vda"), DiskSpec("vdb", format="raw", size_mib=64, file_system=True))
ONE_FREEZE = ["freezing", "thawed"]
SLOW = ("--limit", "4MiB")
ASKED_S = 5.0
"""How long an agent is asked before the freeze goes on without it."""


@pytest.fixture
def asked(lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf) -> LabGuest:
    """A guest whose agent answers, with a file system that it takes notes on."""
    try:
        guest = make_guest(GuestSpec("asked", disks=DISKS, rate=15, agent=True))
    except LabNeeds as error:
        pytest.skip(str(error))
    wait_for(lambda: agent_answers(domain_of(guest)), "the agent to answer")
    guest.wait_notes(5)
    return guest


def agent_answers(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.fsInfo())
    except libvirt.libvirtError:
        return False


def closed_cleanly(image: Path) -> bool:
    """Whether this ext4, as it lies there, needs no recovery: it was frozen, or unmounted."""
    return "needs_recovery" not in run("dumpe2fs", "-h", str(image))


def hooks(guest: LabGuest) -> list[str]:
    return guest.console.read().hooks


def still_good(guest: LabGuest, domain: libvirt.virDomain, folder: Path) -> None:
    """It runs from the destination, can write to its file system, and has lost nothing."""
    guest.wait_notes(10)
    guest.wait_acks(20)
    nothing_of_ours(folder, guest.place.images["vda"].parent)
    power_off(guest, domain)
    moved = {target: folder / image.name for target, image in guest.place.images.items()}
    assert guest.verdict(moved).clean, guest.verdict(moved)
    assert int(run("debugfs", "-R", "cat /notes", str(moved["vdb"]))) >= guest.console.read().noted
    assert guest.errors() == []


@pytest.mark.parametrize("via", ("live", "quick"))
def test_the_guests_file_systems_are_frozen_for_the_snapshot_and_no_longer(
    via: str, asked: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    folder = destination(lab, asked)
    base = asked.place.images["vdb"]
    assert not closed_cleanly(base)

    job = ferry.detached(asked.name, "--path", folder, "--via", via, *SLOW)
    wait_for(lambda: ferry.step(job) == "CopyBase", "the base to be copied", 60)

    assert closed_cleanly(base)
    assert hooks(asked) == ONE_FREEZE
    asked.wait_notes(5)
    assert ferry.step(job) == "CopyBase"
    ferry.run("job", "limit", job, "none")
    wait_for(lambda: ferry.state(job) == "done", "the job to be done", 120)
    assert ferry.receipt(job)["quiesced"] == "yes"
    assert hooks(asked) == ONE_FREEZE
    still_good(asked, domain_of(asked), folder)


def test_an_agent_that_does_not_answer_is_waited_for_a_few_seconds_and_freezes_nothing_when_it_wakes(
    asked: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    domain, folder = domain_of(asked), destination(lab, asked)
    asked.command("agent-stop")

    ended = ferry.run("migrate-storage", asked.name, "--path", folder, "--via", "live")

    assert ended.code == 0, ended.out + ended.err
    job = ferry.jobs()[0]["id"]
    assert ASKED_S - 1 < step_s(ferry, job, "Freeze") < ASKED_S + 5
    asked.command("agent-go")
    wait_for(lambda: agent_answers(domain), "the agent to answer again")
    assert hooks(asked) == []
    still_good(asked, domain, folder)
    assert ferry.receipt(job)["quiesced"] == "no"


def test_a_guest_whose_agent_freezes_it_too_late_is_thawed(
    asked: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    """Its hook takes 9 s: libvirt has given up by then, and does not thaw."""
    folder = destination(lab, asked)
    asked.command("freeze-delay 9")

    ended = ferry.run("migrate-storage", asked.name, "--path", folder, "--via", "live")

    assert ended.code == 0, ended.out + ended.err
    assert hooks(asked) == ONE_FREEZE
    still_good(asked, domain_of(asked), folder)
    assert ferry.receipt(ferry.jobs()[0]["id"])["quiesced"] == "no"


def test_a_freeze_that_somebody_else_made_is_left_to_them(
    asked: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    domain, folder = domain_of(asked), destination(lab, asked)
    domain.fsFreeze()

    ended = ferry.run("migrate-storage", asked.name, "--path", folder, "--via", "live")

    assert ended.code == 0, ended.out + ended.err
    assert hooks(asked) == ["freezing"]
    domain.fsThaw()
    still_good(asked, domain, folder)


@pytest.mark.parametrize("killed", ("libvirtd", "worker"))
def test_a_kill_while_the_guest_is_being_frozen_leaves_it_thawed(
    killed: str, asked: LabGuest, lab: LabHost, ferry: VmferryCommand
) -> None:
    folder = destination(lab, asked)
    asked.command("freeze-delay 3")
    job = ferry.detached(asked.name, "--path", folder, "--via", "live")
    wait_for(lambda: hooks(asked) == ["freezing"], "the freeze to begin", 60)

    if killed == "libvirtd":
        lab.kill_libvirtd()
        lab.start_libvirtd()
    else:
        assert ferry.kill_worker()
        assert ferry.run("recover").code == 0

    wait_for(lambda: ferry.state(job) in ("done", "undone"), "the job to end", 120)
    assert "thawed" in hooks(asked)
    asked.wait_notes(10)
    assert ferry.state(job) == "done"
    connection = lab.connect()
    still_good(asked, connection.lookupByName(asked.name), folder)
    connection.close()
