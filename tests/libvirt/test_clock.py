"""The guest's own clock after its memory was loaded: a pause must not stay in it for good."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest
from tests.support.job_states import step_s, until_ended, until_step
from tests.support.seen import destination, power_off, run

from vmferry.errors import LabNeeds
from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
DISKS = (DiskSpec("vda", data_mib=4),)
RIGHT_S = 1.0
"""A clock that is off by less is right."""
LONG = ("--max-pause", "60s")
ASK = json.dumps({"execute": "guest-get-time"})


@pytest.fixture
def told(make_guest: MakeGuest, domain_of: DomainOf) -> LabGuest:
    """A guest whose agent answers; it has so much memory that a save makes it stand for longer than RIGHT_S."""
    try:
        guest = make_guest(GuestSpec("told the time", disks=DISKS, rate=15, agent=True, memory_mib=256, touch_mib=100))
    except LabNeeds as error:
        pytest.skip(str(error))
    wait_for(lambda: answers(domain_of(guest)), "the agent to answer", 120)
    return guest


def answers(domain: libvirt.virDomain) -> bool:
    try:
        return bool(domain.getTime())
    except libvirt.libvirtError:
        return False


def behind_s(domain: libvirt.virDomain) -> float:
    """How far the guest's clock is behind the host's, as the guest itself says; what the asking takes comes on top."""

    def asked() -> float:
        answer = json.loads(libvirt_qemu.qemuAgentCommand(domain, ASK, 5, 0))
        return time.time() - int(answer["return"]) / 1e9

    return min((asked() for _ in range(5)), key=abs)


def moved(ferry: VmferryCommand, guest: LabGuest, folder: Path) -> str:
    ended = ferry.run("migrate-storage", guest.name, "--path", folder, "--via", "quick", *LONG)
    assert ended.code == 0, ended.out + ended.err
    return str(ferry.jobs()[0]["id"])


def test_the_clock_is_set_by_the_guest_agent_after_a_quick_move(
    told: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    domain = domain_of(told)

    job = moved(ferry, told, destination(lab, told))

    wait_for(lambda: answers(domain), "the agent to answer")
    assert abs(behind_s(domain)) < RIGHT_S
    assert ferry.receipt(job)["pause_s"] > RIGHT_S
    assert "set by the guest agent" in ferry.run("job", "receipt", job).out
    assert "set by the guest agent" in ferry.run("job", "show", job).out
    told.wait_acks(10)
    power_off(told, domain)
    assert told.verdict().clean


def test_without_a_guest_agent_the_receipt_says_what_sets_the_clock(
    lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("tells nobody", disks=DISKS, rate=15))

    job = moved(ferry, guest, destination(lab, guest))

    for page in (ferry.run("job", "receipt", job), ferry.run("job", "show", job)):
        words = " ".join(page.out.split())
        assert "no guest agent answers: `virsh domtime 'tells nobody' --sync`" in words
    assert step_s(ferry, job, "SetClock") < 5
    guest.wait_acks(10)


@pytest.mark.long
def test_an_agent_that_hangs_is_waited_for_a_while_and_the_job_ends_all_the_same(
    told: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    told.command("agent-stop")

    job = moved(ferry, told, destination(lab, told))

    assert "no guest agent answers" in ferry.receipt(job)["clock"]
    told.command("agent-go")
    domain = domain_of(told)
    wait_for(lambda: answers(domain), "the agent to answer")
    assert behind_s(domain) > RIGHT_S
    domain.suspend()
    time.sleep(2 * RIGHT_S)
    domain.resume()
    do_as_told(lab, told)
    assert abs(behind_s(domain)) < 2 * RIGHT_S  # from the RTC, which counts whole seconds


def do_as_told(lab: LabHost, guest: LabGuest) -> None:
    """The command that the job names, as a person types it."""
    run("virsh", "-c", lab.uri, "domtime", guest.name, "--sync")


def blocked(folder: Path, guest: LabGuest, job: str) -> None:
    """Somebody's files lie where the last changes go: the job finds that after it has saved the guest's memory."""
    for round_ in range(8):
        at = folder / f"{guest.place.images['vda'].name}.vmferry-{job}.r{round_}.qcow2"
        if not at.exists():
            at.write_bytes(b"mine")


@pytest.mark.long
def test_an_undo_of_a_save_sets_the_clock_too(
    told: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    folder, domain = destination(lab, told), domain_of(told)
    job = ferry.detached(told.name, "--path", folder, "--via", "quick", *LONG)
    until_step(ferry, job, "Save")
    blocked(folder, told, job)

    assert until_ended(ferry, job) == "undone"

    assert "set by the guest agent" in ferry.run("job", "show", job).out
    assert abs(behind_s(domain)) < RIGHT_S
    told.wait_acks(10)
    power_off(told, domain)
    assert told.verdict(told.place.images).clean


@pytest.mark.long
def test_a_guest_that_keeps_a_time_of_its_own_keeps_it(
    told: LabGuest, lab: LabHost, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    domain = domain_of(told)
    domain.setTime({"seconds": int(time.time()) - 86400, "nseconds": 0}, 0)

    job = moved(ferry, told, destination(lab, told))

    assert "keeps a time of its own" in ferry.receipt(job)["clock"]
    assert abs(behind_s(domain) - 86400) < 60
