"""Relocations struck by every fault at every step: one runnable VM, no write lost, an end or a true sentence.

VMFERRY_EVERY=1 strikes every step with every fault and writes docs/fault-matrix.md, VMFERRY_EVERY=missing does so
with what stands there as not run, VMFERRY_EVERY=2026-11-30 with what was not run on that day or later; the default
takes a sample.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import libvirt
import pytest
from tests.support.fault_matrix import not_run, record
from tests.support.faults import FAULTS, Case, Fault
from tests.support.fleets import ManagedLab, managed
from tests.support.guests import MOVING, MakeGuestOn
from tests.support.seen import nothing_of_ours
from tests.support.starts import restart

from vmferry.errors import HostUnreachable, LabProgramFailed
from vmferry.hosts.fence import Fence
from vmferry.hosts.interface import Host
from vmferry.hosts.libvirt import definition as written
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.lab import Lab, LabHost, wait_for
from vmferry.lab.vmferry_command import ENDS
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import FencingToken, Technology

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "fault-matrix.md"
NAMED = {"quick": "Quick relocation", "live": "Live relocation"}
ROWS = {
    NAMED["quick"]: STRATEGIES[Technology.QUICK_RELOCATION].names,
    NAMED["live"]: STRATEGIES[Technology.LIVE_RELOCATION].names,
}
COLUMNS = [fault.name for fault in FAULTS]
BY_NAME = {fault.name: fault for fault in FAULTS}
SAMPLE = [
    ("quick", "CopyBase", "source agent killed"),
    ("quick", "Save", "source agent killed"),
    ("quick", "FoldLast", "destination agent killed"),
    ("quick", "Resume", "manager killed"),
    ("quick", "Settle", "destination QEMU killed"),
    ("live", "CopyBase", "link cut for 5 s"),
    ("live", "Migrate", "manager killed"),
    ("live", "Migrate", "source agent killed"),
    ("live", "Migrate", "source QEMU killed"),
    ("live", "Migrate", "destination libvirtd killed"),
    ("live", "Retire", "source agent killed"),
]
EVERY = [(via, step, fault) for via in NAMED for step in ROWS[NAMED[via]] for fault in COLUMNS]
ASKED = os.environ.get("VMFERRY_EVERY")
SINCE = {"missing": "", "1": "9999"}
CASES = not_run(PAGE, EVERY, NAMED, SINCE.get(ASKED, ASKED)) if ASKED else SAMPLE
CALM = replace(MOVING, rate=15, dirty_mib_s=1)
"""It writes through every step, and several of them leave two cores some room."""
SLOW = {"CopyBase": ("--limit", "8MiB")}
NARROW = {"Migrate": "100mbit", "CopyLast": "100mbit", "Save": "100mbit"}
"""So that a step lasts long enough to be struck in its midst."""
MUCH = {"Save": replace(CALM, touch_mib=40)}
MIDST = {"Save": "vmferry-*.memory.part"}
"""What shows at the destination that a step is in its midst: of a save, that memory is carried."""
WORDS = {"quick": ("--via", "quick", "--max-pause", "60s"), "live": ("--via", "live")}


@pytest.fixture(scope="module")
def whole_fleet(labs: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedLab]:
    assert callable(labs)
    with managed(labs(2), tmp_path_factory.mktemp("faults").name) as fleet:
        yield fleet


@pytest.fixture
def fleet(whole_fleet: ManagedLab, two_hosts: Lab) -> Iterator[ManagedLab]:
    """The same one for all cases; mended, whatever the last one left of it."""
    yield whole_fleet
    for name, agent in whole_fleet.agents.items():
        two_hosts.link(name).heal()
        if not agent.alive:
            agent.start()


def first_host(hosts: Lab, state: Path) -> tuple[LabHost, Host]:
    """The lab's first host, and what a job may do there."""
    one = hosts.host("host1")
    return one, LibvirtHosts(Fence(state)).open(one.uri, FencingToken("abcd2345", 1))


def test_a_libvirtd_that_is_down_is_no_answer_that_a_vm_is_not_there(two_hosts: Lab, tmp_path: Path) -> None:
    """To give up a VM, or to take its placeholder away, must not seem to have worked."""
    one, host = first_host(two_hosts, tmp_path)
    unknown = str(uuid4())
    asks: list[Callable[[str], object]] = [
        host.arrived,
        host.announced,
        host.withdraw,
        lambda uuid: host.relinquish(uuid, runs=True),
    ]
    for ask in asks:
        assert not ask(unknown)
        one.kill_libvirtd()
        with pytest.raises(HostUnreachable):
            ask(unknown)
        one.start_libvirtd()


def test_a_vm_that_is_given_up_while_it_runs_cannot_start_here_until_it_is_taken_back(
    two_hosts: Lab, make_guest_on: MakeGuestOn, tmp_path: Path
) -> None:
    one, host = first_host(two_hosts, tmp_path)
    guest = make_guest_on(one, replace(MOVING, name="given up"))
    before = one.run("virsh", "dumpxml", "--inactive", guest.name)
    definition = host.definition(guest.place.uuid)
    host.relinquish(guest.place.uuid, runs=True)
    host.reclaim(definition)
    assert one.run("virsh", "dumpxml", "--inactive", guest.name) == before
    host.relinquish(guest.place.uuid, runs=True)
    host.relinquish(guest.place.uuid, runs=True)
    guest.wait_acks(5)
    one.kill_qemu(guest.name)
    restart(one)
    with pytest.raises(LabProgramFailed, match="nonexistent"):
        one.run("virsh", "start", guest.name)
    host.reclaim(definition)
    one.run("virsh", "start", guest.name)
    guest.wait_writing()
    host.relinquish(guest.place.uuid, runs=True)
    one.kill_qemu(guest.name)
    wait_for(lambda: not host.arrived(guest.place.uuid), "libvirt to see that QEMU has ended")
    host.withdraw(guest.place.uuid)
    assert guest.name not in one.run("virsh", "list", "--all", "--name").splitlines()


def test_a_snapshot_of_a_vm_that_is_given_up_goes_back_to_its_own_definition_once_it_is_taken_back(
    two_hosts: Lab, make_guest_on: MakeGuestOn, tmp_path: Path
) -> None:
    """libvirt writes the definition for the next start into a snapshot: meanwhile that is the placeholder."""
    one, host = first_host(two_hosts, tmp_path)
    guest = make_guest_on(one, replace(MOVING, name="snapped"))
    definition = host.definition(guest.place.uuid)
    host.relinquish(guest.place.uuid, runs=True)
    one.run("virsh", "snapshot-create-as", guest.name, "foreign", "--disk-only", "--diskspec", "hdc,snapshot=no")
    assert "/nonexistent/" in one.run("virsh", "snapshot-dumpxml", guest.name, "foreign")

    host.reclaim(definition)

    taken = one.run("virsh", "snapshot-dumpxml", guest.name, "foreign")
    assert "/nonexistent/" not in taken
    assert "urn:vmferry:placeholder" not in taken
    assert all(str(image) in taken.partition("<inactiveDomain")[2] for image in guest.place.images.values())
    assert "foreign" in one.run("virsh", "snapshot-current", "--name", guest.name)
    guest.wait_acks(5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("via", "step", "fault"), CASES, ids=lambda word: str(word).replace(" ", "-"))
def test_a_relocation_that_is_struck_leaves_one_vm_that_runs_and_loses_nothing(
    via: str, step: str, fault: str, fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, replace(MUCH.get(step, CALM), name=f"{via} {step} {FAULTS.index(BY_NAME[fault])}"))
    guest.wait_acks(20)
    folder = two.storage("san2") / guest.name
    folder.mkdir()
    fleet.lab.link("host2").shape(NARROW.get(step))
    job = fleet.detached(guest, two, "--path", folder, *WORDS[via], *SLOW.get(step, ()))
    case = Case(fleet, guest, folder, job, step)
    struck, told = strike(case, BY_NAME[fault])
    judge(case, BY_NAME[fault])
    if ASKED:
        text = f"{told} ({datetime.now(UTC):%Y-%m-%d})" if struck else "-"
        record(PAGE, ROWS, COLUMNS, (NAMED[via], f"{step} / {fault}", text))


def strike(case: Case, fault: Fault) -> tuple[bool, str]:
    """Make the fault, mend it, go on. Returns whether there was anything to strike, and how the job ended."""
    manager = case.fleet.manager
    try:
        wait_for(lambda: case.step in manager.steps(case.job) or case.ended(), f"{case.step}", 180)
        assert case.step in manager.steps(case.job), manager.job(case.job)
        if case.step in MIDST:
            wait_for(lambda: [*case.folder.glob(MIDST[case.step])] or case.ended(), "the midst of it", 180)
        struck = fault.inject(case)
    finally:
        fault.mend(case)
    case.fleet.lab.link("host2").shape(None)
    first = ended(case)
    if first != "stuck":
        return struck, first
    sentence = manager.job(case.job)["sentence"]
    assert len(sentence) > 20, sentence
    retried = manager.run("job", "retry", case.job)
    assert retried.code in (0, 5), retried.out + retried.err
    wait_for(lambda: case.state() not in ("stuck",), "the retry to begin", 60)
    return struck, f"stuck, then {ended(case)}"


def ended(case: Case) -> str:
    with suppress(TimeoutError):
        case.fleet.manager.run("recover")
    wait_for(lambda: case.state() in ENDS, f"job {case.job} to end: {case.says()}", 120)
    return case.state()


def judge(case: Case, fault: Fault) -> None:
    guest, (one, two) = case.guest, case.hosts
    state = case.state()
    told = case.fleet.manager.job(case.job)
    assert state in ("done", "undone"), case.says()
    able = [host.name for host in case.hosts if can_run(host, guest.place.uuid)]
    assert able == [{"done": "host2", "undone": "host1"}[state]], told
    host = case.fleet.lab.host(able[0])
    if state == "done":
        guest.moved_to(two)
    if power(host, guest.place.uuid) == libvirt.VIR_DOMAIN_SHUTOFF:
        assert fault.ends_guest or case.powerless, told
        assert guest.verdict().clean, guest.verdict()
        host.run("virsh", "start", guest.name)
        guest.wait_writing()
    assert guest.runs_on() == able, told
    guest.wait_acks(10)
    guest.stop_writing()
    verdict = guest.verdict()
    assert verdict.clean, verdict
    assert guest.errors() == []
    source = one.storage("san1") / guest.name
    nothing_of_ours(source, case.folder)
    assert (sorted(source.iterdir()) == []) == (state == "done"), list(source.iterdir())
    assert (sorted(case.folder.iterdir()) == []) == (state == "undone"), list(case.folder.iterdir())
    other = two if host.name == one.name else one
    restart(other)
    assert guest.name not in other.run("virsh", "list", "--all", "--name").splitlines()
    for each in case.hosts:
        assert each.run("find", "/run", "-path", f"/run/vmferry/*{case.job}*") == ""


def can_run(host: LabHost, uuid: str) -> bool:
    """It runs or stands there, or could be started: whatever libvirt knows of it, but a placeholder."""
    connection = host.connect()
    try:
        domain = written.find(connection, uuid)
        return domain is not None and written.marked(domain) == ""
    finally:
        connection.close()


def power(host: LabHost, uuid: str) -> int:
    connection = host.connect()
    try:
        return int(connection.lookupByUUIDString(uuid).state()[0])
    finally:
        connection.close()
