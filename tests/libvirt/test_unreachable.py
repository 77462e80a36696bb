"""Commands at a host that cannot be asked, as a person types them: a sentence of their own, and an exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.guests import MakeGuest
from tests.support.job_states import SLOW, said, until_ended, until_step
from tests.support.seen import destination

from vmferry.lab import DiskSpec, GuestSpec, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

GUEST = GuestSpec("web-server", disks=(DiskSpec("vda", data_mib=24),), rate=15)
NOBODY = 65534
DOWN = "qemu:///system?socket=/nowhere/libvirt-sock"
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
WORDS = (
    ("vms",),
    ("vm", "show", "web"),
    ("cpu", "check", "web", "qemu:///system"),
    ("migrate-storage", "web", "--path", "/srv", "--plan"),
)


@pytest.mark.parametrize(
    "uri,cure,code,words",
    [
        *((DOWN, "systemctl start libvirtd", 3, words) for words in WORDS),
        ("qemu+tcp://no-such-host.invalid/system", "how its name is spelled", 3, WORDS[0]),
        ("test:///default", "write qemu:///system", 2, WORDS[0]),
        ("qmu:///system", "write qemu:///system", 2, WORDS[0]),
    ],
)
def test_a_command_says_what_is_wrong_with_the_host_and_speaks_of_no_job(
    uri: str, cure: str, code: int, words: tuple[str, ...], lab: LabHost, ferry: VmferryCommand
) -> None:
    ended = ferry.run("--connect", uri, *words)
    assert ended.code == code, said(ended)
    assert cure in said(ended)
    assert "job" not in said(ended)
    assert ferry.jobs() == []


@pytest.fixture
def as_nobody(lab: LabHost) -> Iterator[VmferryCommand]:
    """vmferry as a user who may not talk to the lab's libvirtd."""
    state = Path(tempfile.mkdtemp(prefix="vmferry-nobody-"))
    os.chown(state, NOBODY, NOBODY)
    try:
        with VmferryCommand(state / "state", lab.uri, AS_NOBODY) as command:
            if subprocess.run((*AS_NOBODY, *command.command[-1:], "--version"), capture_output=True).returncode:
                pytest.skip("vmferry is installed where only root can run it")
            yield command
    finally:
        shutil.rmtree(state, ignore_errors=True)


def test_a_user_who_may_not_talk_to_libvirt_is_told_how_to(as_nobody: VmferryCommand) -> None:
    for words in WORDS:
        ended = as_nobody.run(*words)
        assert ended.code == 3, said(ended)
        assert "Permission denied" in said(ended)
        assert "use sudo, or become a member of the group libvirt" in said(ended)
        assert "job" not in said(ended)


def test_a_job_that_meets_it_says_that_it_waits(lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand) -> None:
    guest = make_guest(GUEST)
    job = ferry.detached(guest.name, "--path", destination(lab, guest), *SLOW)
    until_step(ferry, job, "CopyBase")
    lab.kill_libvirtd()
    try:
        says = "start libvirtd there (`systemctl start libvirtd`), the job waits for it"
        wait_for(lambda: says in ferry.job(job)["progress"]["now"], "the job to say what it waits for", 60)
    finally:
        lab.start_libvirtd()
    ferry.run("job", "limit", job, "none")
    assert until_ended(ferry, job) == "done"


def test_a_plan_of_a_vm_that_a_job_holds_says_what_submitting_would(
    lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    guest = make_guest(GUEST)
    there = destination(lab, guest)
    job = ferry.detached(guest.name, "--path", there, "--limit", "256KiB")
    until_step(ferry, job, "CopyBase")

    planned = ferry.run("migrate-storage", guest.name, "--path", there, "--plan")
    submitted = ferry.run("migrate-storage", guest.name, "--path", there)

    assert (planned.code, planned.err) == (submitted.code, submitted.err)
    assert planned.code == 3
    assert f"is being moved by job {job}" in said(planned)
    assert "vmferry-" not in planned.out
    ferry.run("job", "cancel", job)
    assert until_ended(ferry, job) == "undone"
    assert ferry.run("migrate-storage", guest.name, "--path", there, "--plan").code == 0


def test_a_mistyped_name_of_a_vm_is_answered_with_the_names_that_are_like_it(
    make_guest: MakeGuest, ferry: VmferryCommand
) -> None:
    guest = make_guest(GUEST)
    for mistyped in ("web-sever", "Web-Server", "webserver"):
        ended = ferry.run("vm", "show", mistyped)
        assert ended.code == 2
        assert f"did you mean {guest.name}?" in said(ended)
    assert "did you mean" not in said(ferry.run("vm", "show", "database"))
