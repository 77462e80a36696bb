"""Background work beside a guest whose disk becomes slow: it gives way, says so, and ends all the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest
from tests.support.fleets import managed
from tests.support.guests import MakeGuestOn
from tests.support.seen import destination, images, nothing_of_ours, power_off

from vmferry.hosts.fence import Fence
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.lab import DiskSpec, GuestSpec, Lab, LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import VmferryCommand

pytestmark = pytest.mark.long

MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
DISK = DiskSpec("vda", format="raw", size_mib=512, data_mib=320)
LIMIT_MIB_S = 24
SLOW_IOPS = 8
"""A write waits an eighth of a second in QEMU's own throttle, on any machine: that counts as the guest's latency."""


def logged(ferry: VmferryCommand, event: str) -> list[dict[str, Any]]:
    records = map(json.loads, (ferry.state_folder / "worker.log").read_text().splitlines())
    return [record for record in records if record["event"] == event]


def slow_down(domain: libvirt.virDomain, iops: int) -> None:
    domain.setBlockIoTune("vda", {"total_iops_sec": iops}, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def held(ferry: VmferryCommand, job: str) -> str:
    return str(ferry.job(job)["progress"]["held"])


def copying(ferry: VmferryCommand, guest: LabGuest, folder: Path, priority: str) -> str:
    """A job under way, in the middle of its base."""
    words = (guest.name, "--path", folder, "--priority", priority, "--limit", f"{LIMIT_MIB_S}MiB")
    job = ferry.detached(*words)
    wait_for(lambda: ferry.job(job)["progress"]["disks"][0]["done_bytes"] > 48 << 20, "a part to be copied", 120)
    return job


def test_a_background_job_gives_way_to_a_slow_guest_says_so_and_ends(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("suffers", disks=(DISK,), rate=100))
    guest.wait_acks(150)  # enough to know what is usual
    domain, folder = domain_of(guest), destination(lab, guest)
    job = copying(ferry, guest, folder, "low")

    slow_down(domain, SLOW_IOPS)
    wait_for(lambda: held(ferry, job).startswith("giving way to guests: writes of suffers (vda) take "), "it", 120)
    slow_down(domain, 0)

    wait_for(lambda: ferry.state(job) == "done", "the job to end", 240)
    least = min(record["bytes_s"] for record in logged(ferry, "giving way"))
    assert least < LIMIT_MIB_S << 20
    assert images(domain)["vda"].parent == folder
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()
    nothing_of_ours(folder)


def test_a_foreground_job_gives_way_to_nobody(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, ferry: VmferryCommand
) -> None:
    guest = make_guest(GuestSpec("not heard", disks=(DISK,), rate=100))
    guest.wait_acks(150)
    domain, folder = domain_of(guest), destination(lab, guest)
    job = copying(ferry, guest, folder, "foreground")

    slow_down(domain, SLOW_IOPS)
    wait_for(lambda: ferry.state(job) == "done", "the job to end", 240)
    slow_down(domain, 0)

    assert logged(ferry, "giving way") == []
    power_off(guest, domain)
    assert guest.verdict().clean, guest.verdict()


OTHERS = """
import socket, sys, time
sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
began, sent = time.monotonic(), 0
while True:
    sending.sendto(bytes(8192), (sys.argv[1], 9))
    sent += 8192
    time.sleep(max(0.0, sent / float(sys.argv[2]) - (time.monotonic() - began)))
"""


def test_a_relocation_gives_way_to_others_on_the_link_and_ends(
    two_hosts: Lab, make_guest_on: MakeGuestOn, tmp_path: Path
) -> None:
    one, two = two_hosts.hosts
    disk = DiskSpec("vda", format="raw", size_mib=256, data_mib=192)
    guest = make_guest_on(one, GuestSpec("leaves", disks=(disk,), rate=20))
    guest.wait_acks(20)
    folder = two.storage("san2") / guest.name
    folder.mkdir()
    with managed(two_hosts, tmp_path.name, options=("--link-speed", "200mbit")) as fleet:
        words = ("--path", folder, "--via", "quick", "--max-pause", "60s", "--priority", "low", "--limit", "8MiB")
        job = fleet.detached(guest, two, *words)
        wait_for(lambda: fleet.manager.step(job) == "CopyBase", "the copy to begin", 120)
        one.spawn_inside([sys.executable, "-c", OTHERS, two.address, "18e6"], "others")
        try:
            said = "giving way on the link: others use "
            wait_for(lambda: held(fleet.manager, job).startswith(said), "it to give way", 60)
        finally:
            one.kill("others")

        wait_for(lambda: fleet.manager.state(job) == "done", "the job to end", 240)
        assert min(record["bytes_s"] for record in logged(fleet.manager, "giving way")) < 8 << 20
        guest.moved_to(two)
        guest.wait_acks(20)
        guest.stop_writing()
        assert guest.verdict().clean, guest.verdict()


def test_libvirt_tells_how_long_the_guests_writes_take(
    lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf, tmp_path: Path
) -> None:
    guest = make_guest(GuestSpec("told", disks=(DISK,), rate=100))
    host = LibvirtHosts(Fence(tmp_path)).open(lab.uri)

    def writes() -> dict[str, tuple[int, float]]:
        return {d.target: (d.writes, d.seconds) for d in host.load().disks if d.vm == guest.name and d.local}

    slow_down(domain_of(guest), SLOW_IOPS)
    wait_for(lambda: "vda" in writes(), "libvirt to tell")
    before, acks = writes()["vda"], len(guest.acks())
    wait_for(lambda: writes().get("vda", before)[0] >= before[0] + 16, "16 more writes")
    after = writes()["vda"]
    assert len(guest.acks()) >= acks
    assert (after[1] - before[1]) / (after[0] - before[0]) > 0.5 / SLOW_IOPS
    power_off(guest, domain_of(guest))
    assert writes() == {}
