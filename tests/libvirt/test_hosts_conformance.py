"""The same acts on a real libvirtd, directly and behind its agent: what a guest would see is the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import libvirt
import pytest
from tests.support.seen import TWO_DISKS, destination, power_off
from tests.support.served import ServedHost

from vmferry.errors import DestinationExists, HostRefused, NoSuchVm, Superseded, VmHeld
from vmferry.hosts.fence import Fence
from vmferry.hosts.interface import Host
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.lab import GuestSpec, LabGuest, LabHost
from vmferry.manager.fleet.service import Fleet
from vmferry.model import Changes, FencingToken, Placed, Power
from vmferry.transfer import Transfer, Unwatched

pytestmark = pytest.mark.long

Open = Callable[[FencingToken | None], Host]
MakeGuest = Callable[[GuestSpec], LabGuest]
DomainOf = Callable[[LabGuest], libvirt.virDomain]
JOB = "abcd2345"
QUIET = GuestSpec("conforming", disks=TWO_DISKS, rate=20)


@pytest.fixture(params=["libvirt", "agent"])
def open_host(request: pytest.FixtureRequest, lab: LabHost, tmp_path: Path) -> Iterator[Open]:
    if request.param == "libvirt":
        here = LibvirtHosts(Fence(tmp_path))
        yield lambda token: here.open(lab.uri, token)
        return
    state = tmp_path / "manager"
    state.mkdir()
    fleet = Fleet(state, f"sqlite:///{state}/vmferry.db")
    with ServedHost(lab.at / f"agent-{tmp_path.name}", lab.uri) as served:
        fleet.add("host1", served.address, served.token())
        for name in ("san1", "san2"):
            fleet.add_storage(name, "host1", lab.storage(name), "")
        hosts = fleet.over(LibvirtHosts(Fence(tmp_path)))
        yield lambda token: hosts.open("host1", token)
    fleet.close()


def test_a_vm_that_libvirt_is_at_work_on_is_told_from_one_that_it_refuses(
    open_host: Open, lab: LabHost, make_guest: MakeGuest
) -> None:
    """libvirt waits half a minute for the lock that somebody else's question holds, while QEMU does not answer.

    All VMs of that host are told within that time.
    """
    guest = make_guest(QUIET)
    host, qemu = open_host(FencingToken(JOB, 1)), lab.qemu_pid(guest.name)
    uuid = guest.place.uuid
    assert qemu is not None
    with lab.connect() as connection, ThreadPoolExecutor() as pool:
        other = Thread(target=connection.lookupByUUIDString(uuid).memoryStats)
        os.kill(qemu, signal.SIGSTOP)
        try:
            other.start()
            act = pool.submit(host.suspend, uuid)
            assert guest.name in [vm.name for vm in host.vms()]
            assert not act.done()
            with pytest.raises(VmHeld, match="tries again by itself"):
                act.result()
        finally:
            os.kill(qemu, signal.SIGCONT)
            other.join()
    assert host.power(uuid) is Power.RUNNING
    host.suspend(uuid)
    assert host.power(uuid) is Power.PAUSED
    host.resume(uuid)
    guest.wait_acks(5)


COMES_AND_GOES = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64'>hvm</type></os></domain>"""


def test_a_vm_that_goes_while_all_are_listed_is_no_reason_not_to_tell_of_the_others(
    open_host: Open, lab: LabHost, make_guest: MakeGuest
) -> None:
    """Seen: jobs were undone, since another job's VM had just left the host."""
    guest, looking, over = make_guest(QUIET), open_host(None), Event()

    def come_and_go(name: str) -> None:
        with lab.connect() as connection:
            while not over.is_set():
                domain = connection.defineXML(COMES_AND_GOES.format(name=name))
                domain.create()
                domain.destroy()
                domain.undefine()

    others = [Thread(target=come_and_go, args=(f"comes and goes {number}",)) for number in range(2)]
    for other in others:
        other.start()
    try:
        for _ in range(20):
            assert guest.name in [vm.name for vm in looking.vms()]
    finally:
        over.set()
        for other in others:
            other.join()


def test_a_guest_is_looked_at_frozen_copied_merged_saved_and_restored(
    open_host: Open, lab: LabHost, make_guest: MakeGuest, domain_of: DomainOf
) -> None:
    guest = make_guest(QUIET)
    guest.wait_acks(10)
    host, looking = open_host(FencingToken(JOB, 1)), open_host(None)
    uuid, base = guest.place.uuid, guest.place.images["vda"]
    folder = destination(lab, guest)

    seen = looking.vm(guest.name)
    assert (seen.uuid, seen.power, seen.disk("vda").active.path) == (uuid, Power.RUNNING, base)
    assert uuid in [vm.uuid for vm in looking.vms()]
    assert looking.users(base) == (uuid,)
    assert {user.id for user in looking.file_users([base], [folder])} == {uuid}
    with pytest.raises(NoSuchVm):
        looking.vm("nobody")

    overlay = base.with_name(f"{base.name}.vmferry-{JOB}.r0")
    host.freeze(uuid, {"vda": overlay}, None)
    assert looking.active_image(uuid, "vda") == overlay
    part = folder / f"{base.name}.vmferry-{JOB}.part"
    transfer = Transfer(base, part, lab.at / "bookmarks" / JOB / "vda.bookmarks")
    transfer.bookmarks.parent.mkdir(parents=True, exist_ok=True)
    assert host.copy(transfer, Unwatched()).root_hash == host.compare(transfer, Unwatched()).root_hash
    host.promote(part, folder / base.name)
    assert looking.exists(folder / base.name)
    part.write_bytes(b"of another one")
    with pytest.raises(DestinationExists):
        host.promote(part, folder / base.name)
    host.remove(part)
    host.forget(transfer)
    guest.wait_acks(10)

    closed = {name: Transfer(base, folder / f"{name}.part", transfer.bookmarks.with_name(name)) for name in ("a", "b")}
    brought = host.bring(list(closed.values()), Unwatched())
    assert {copied.root_hash for copied in brought} == {host.compare(t, Unwatched()).root_hash for t in closed.values()}
    for each in closed.values():
        host.drop(each)
        assert not looking.exists(each.destination)

    chains = {chain.target: chain for chain in looking.chains(uuid) or ()}
    assert chains["vda"].named == (str(overlay), str(base))
    assert [(layer.name, layer.format) for layer in chains["vda"].layers] == [
        (str(overlay), "qcow2"),
        (str(base), "qcow2"),
    ]
    assert host.unfreeze(uuid, "vda", [overlay], Placed(base, "qcow2"), Unwatched()) == Placed(base, "qcow2")
    assert looking.active_image(uuid, "vda") == base
    host.remove(overlay)
    with pytest.raises(HostRefused):
        looking.mirrored(uuid, "vda")

    memory = folder / f"vmferry-{JOB}.memory"
    host.save(uuid, memory, Unwatched())
    assert (looking.power(uuid), looking.saved(uuid, memory)) == (Power.OFF, True)
    lab.connect().lookupByUUIDString(uuid).undefine()
    assert (looking.defined(uuid), looking.saved(uuid, memory)) == (False, True)
    host.define_saved(uuid, memory)
    assert (looking.defined(uuid), looking.saved(uuid, memory)) == (True, True)
    domain_of(guest).rename(f"{guest.name} meanwhile")
    host.restore(uuid, memory, Changes())
    assert (looking.power(uuid), domain_of(guest).name()) == (Power.PAUSED, guest.name)
    assert host.release(uuid, memory, run=True) >= 0
    assert looking.spent(memory)
    guest.wait_acks(10)
    host.remove(memory)

    open_host(FencingToken(JOB, 2)).resume(uuid)
    with pytest.raises(Superseded):
        host.suspend(uuid)
    power_off(guest, domain_of(guest))
    assert guest.verdict().clean
