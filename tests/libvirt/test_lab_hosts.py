"""The lab of several hosts: storages that are apart, links that can be cut, guests that are heard wherever they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import libvirt
import pytest
from tests.support.guests import MOVING, MakeGuestOn, assert_nothing_is_left

from vmferry.errors import LabPlaceUnfit, LabProgramFailed
from vmferry.lab import DiskSpec, GuestSpec, Lab, LabGuest, LabHost, StorageSpec, commands, wait_for
from vmferry.lab.hosts.links import Cut
from vmferry.lab.hosts.processes import kill_all, lab_processes
from vmferry.lab.programs import run
from vmferry.lab.vmferry_command import VmferryCommand

pytestmark = pytest.mark.long

SMALL = (StorageSpec("san1", "ext4", 256),)
LITTLE_SHARED = (StorageSpec("shared", "ext4", 256),)
LINUX = GuestSpec(
    "linux",
    disks=(
        DiskSpec("vda", format="raw", size_mib=64, data_mib=4, region_mib=16),
        DiskSpec("vdb", storage="shared", format="raw", size_mib=1, lease=True),
    ),
)
ANSWER = "import socket; s = socket.create_server(('', 7000)); c, _ = s.accept(); c.sendall(c.recv(1)); c.recv(1)"
ASK = "import socket; s = socket.create_connection(('host2', 7000), {patience}); s.sendall(b'x'); print(s.recv(1))"


# -- hosts


def test_a_host_sees_its_own_storages_and_the_shared_one_and_nothing_of_another(two_hosts: Lab) -> None:
    one, two = two_hosts.hosts
    for host in two_hosts.hosts:
        (host.storage("san1") / "mine").write_text(host.name)
    (two_hosts.shared() / "ours").write_text("from outside")
    assert one.run("cat", one.storage("san1") / "mine") == "host1"
    assert two.run("cat", two.storage("san1") / "mine") == "host2"
    assert one.run("cat", two.storage("shared") / "ours") == "from outside"
    for node in (two, two_hosts.manager):
        with pytest.raises(LabProgramFailed, match="No such file"):
            node.run("ls", one.storage("san1"))
        with pytest.raises(LabProgramFailed, match="Read-only"):
            node.run("mkdir", one.at)


def test_a_storage_added_later_is_seen_by_its_own_host_only(two_hosts: Lab) -> None:
    one, two = two_hosts.hosts
    place = one.add_storage("later", "ext4", 64)
    assert "lost+found" in one.run("ls", place)
    with pytest.raises(LabProgramFailed, match="No such file"):
        two.run("ls", place)


def test_hosts_have_names_and_ids_of_their_own_and_reach_each_others_libvirtd(two_hosts: Lab) -> None:
    seen = [
        two_hosts.manager.run("virsh", "-c", host.tcp_uri, "hostname").strip() for host in two_hosts.hosts
    ] + two_hosts.host("host1").run("virsh", "-c", "qemu+tcp://host2/system", "hostname").split()
    assert seen == ["host1", "host2", "host2"]
    ids = {host.run("virsh", "capabilities").partition("<uuid>")[2][:36] for host in two_hosts.hosts}
    assert len(ids) == 2


def test_vmferry_itself_reaches_a_host_from_the_managers_place(
    two_hosts: Lab, make_guest_on: MakeGuestOn, manager: VmferryCommand
) -> None:
    make_guest_on(two_hosts.host("host1"), replace(LINUX, name="seen"))
    ended = manager.run("vms", "--json")
    assert ended.code == 0, ended.err
    assert "seen" in ended.out


# -- a guest that moves


def test_a_guest_moved_live_by_libvirt_alone_loses_nothing_and_is_heard_on_both_hosts(
    two_hosts: Lab, make_guest_on: MakeGuestOn
) -> None:
    one, two = two_hosts.hosts
    guest = make_guest_on(one, MOVING)
    guest.wait_acks(20)
    moved = migrate(guest, two, "san2")
    assert guest.runs_on() == ["host2"]
    guest.moved_to(two)
    guest.wait_acks(40)
    guest.wait_edges(2)
    back = migrate(guest, one, "san2")
    guest.moved_to(one)
    guest.wait_acks(20)
    guest.stop_writing()
    verdict = guest.verdict()
    assert verdict.clean, verdict
    assert guest.errors() == []
    assert guest.console.ups == 1
    assert guest.images() == back | {"hdc": str(guest.place.images["hdc"])}
    on_two = (two.guest_folder(guest.place.uuid) / "console.log").read_text()
    assert on_two.count("\nack ") >= 40
    assert Path(moved["hda"]).exists()


def test_the_verdict_finds_a_write_that_did_not_come_along(two_hosts: Lab, make_guest_on: MakeGuestOn) -> None:
    """The disk as it was before the move, in the place of the one that moved: what is missing shows."""
    one, two = two_hosts.hosts
    guest = make_guest_on(one, MOVING)
    guest.wait_acks(20)
    migrate(guest, two, "san2")
    guest.moved_to(two)
    guest.wait_acks(20)
    guest.stop_writing()
    assert guest.verdict().clean
    assert guest.verdict({**guest.images(), "hda": guest.place.images["hda"]}).lost > 0


@pytest.mark.parametrize("spec", [MOVING, LINUX], ids=["bare", "linux"])
def test_two_copies_of_a_guest_at_once_are_found(spec: GuestSpec, two_hosts: Lab, make_guest_on: MakeGuestOn) -> None:
    """One saved state started twice, each copy on disks of its own: only the lease and the clock can tell."""
    one, two = two_hosts.hosts
    guest = make_guest_on(one, spec)
    guest.wait_acks(10)
    state = two_hosts.shared() / f"{guest.name}.state"
    with_connection(one, lambda c: c.lookupByName(guest.name).save(str(state)))
    assert guest.verdict().second_writers == 0
    elsewhere = {
        str(image): str(two.storage("san1") / f"second-{image.name}")
        for target, image in guest.place.images.items()
        if target in {disk.target for disk in spec.stamped}
    }
    for image, copy in elsewhere.items():
        run("cp", "--sparse=always", image, copy)
    with_connection(one, lambda c: c.restore(str(state)))
    guest.wait_acks(10)
    assert guest.verdict().second_writers == 0
    with_connection(two, lambda c: restore_with(c, state, elsewhere))
    state.unlink()
    assert guest.runs_on() == ["host1", "host2"]
    wait_for(lambda: any("second-writer" in s for s in guest.console.read().second_writers), "the lease to tell")
    wait_for(lambda: any("tell of second" in s for s in guest.console.read().second_writers), "the clock to tell")
    assert not guest.verdict().clean


# -- links


@pytest.mark.parametrize("how", get_args(Cut))
def test_a_cut_link_carries_nothing_until_it_is_healed(how: Cut, two_hosts: Lab) -> None:
    one, two = two_hosts.hosts
    two.spawn_inside([sys.executable, "-c", ANSWER], "answering")
    wait_for(lambda: ":7000" in two.run("ss", "-ltn"), "the server")
    link = two_hosts.link("host2")
    link.cut(how)
    with pytest.raises(LabProgramFailed, match=r"timed out|No route"):
        one.run(sys.executable, "-c", ASK.format(patience=2))
    link.heal()
    assert "b'x'" in one.run(sys.executable, "-c", ASK.format(patience=20))
    two.kill("answering")


def test_a_silent_cut_is_silence_to_a_connection_that_stands(two_hosts: Lab) -> None:
    """Bytes sent into the cut arrive after it: the connection has seen no error at either end."""
    one, two = two_hosts.hosts
    two.spawn_inside([sys.executable, "-c", ANSWER], "answering")
    wait_for(lambda: ":7000" in two.run("ss", "-ltn"), "the server")
    talk = "import socket,sys; s = socket.create_connection(('host2', 7000), 20); print('there', flush=True);"
    talk += "sys.stdin.readline(); s.sendall(b'x'); print('sent', flush=True); print(s.recv(1), flush=True)"
    words = one.inside(sys.executable, "-c", talk)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as talker:
        assert talker.stdin is not None
        assert talker.stdout is not None
        assert talker.stdout.readline() == "there\n"
        two_hosts.link("host2").cut("silent")
        print("go", file=talker.stdin, flush=True)
        assert talker.stdout.readline() == "sent\n"
        wait_for(lambda: "ESTAB" in one.run("ss", "-tno") and "timer:(on" in one.run("ss", "-tno"), "a retry")
        two_hosts.link("host2").heal()
        assert talker.stdout.readline() == "b'x'\n"
    two.kill("answering")


def test_a_shaped_link_is_slow_and_stays_so_across_a_cut(two_hosts: Lab) -> None:
    link = two_hosts.link("host2")
    link.shape("100mbit")
    link.cut("silent")
    link.heal()
    assert link.state.rate == "100mbit"
    assert "tbf" in two_hosts.host("host2").run("tc", "qdisc", "show", "dev", "eth0")
    assert 1 < seconds_to_send(two_hosts, mib=20) < 60, "20 MiB at 100 Mbit/s are 1.7 s"


def seconds_to_send(lab: Lab, mib: int) -> float:
    one, two = lab.hosts
    take = "import socket; c, _ = socket.create_server(('', 7001)).accept()\nwhile c.recv(1 << 20): pass"
    two.spawn_inside([sys.executable, "-c", take], "taking")
    wait_for(lambda: ":7001" in two.run("ss", "-ltn"), "the server")
    send = "import socket,time; s = socket.create_connection(('host2', 7001), 20); t = time.monotonic();"
    send += f"s.sendall(bytes({mib} << 20)); s.shutdown(1); s.recv(1); print(time.monotonic() - t)"
    took = float(one.run(sys.executable, "-c", send))
    wait_for(lambda: two.pid_of("taking") is None, "it to be taken")
    return took


# -- programs that stay


def test_a_program_inside_is_killed_started_frozen_and_woken_by_its_name(two_hosts: Lab) -> None:
    host = two_hosts.host("host1")
    beat = "import time\nwhile True: print('beat', flush=True); time.sleep(0.02)"
    started = host.spawn_inside([sys.executable, "-c", beat], "beating")
    log = host.log_of("beating")

    def beats() -> int:
        return log.read_text().count("beat\n")

    wait_for(beats, "a beat")
    assert Path(f"/proc/{started.pid}/root{host.at}").exists()
    assert not Path(f"/proc/{started.pid}/root{two_hosts.host('host2').at}").exists()
    another = LabHost(host.at)  # as another process would have it
    another.freeze("beating")
    wait_for(lambda: "T" in run("ps", "-o", "state=", "-p", str(started.pid)), "it to stand still")
    stood = beats()
    another.wake("beating")
    wait_for(lambda: beats() > stood, "it to go on")
    host.kill("beating")
    assert host.pid_of("beating") is None
    before = beats()
    again = host.start("beating")
    assert again.pid != started.pid
    wait_for(lambda: beats() > before, "it to beat again")
    host.stop("beating")
    assert host.pid_of("beating") is None
    with pytest.raises(LabProgramFailed, match="ever started"):
        host.start("nothing")


# -- the end


def test_labs_stand_side_by_side_and_nothing_is_left_of_them(two_hosts: Lab, tmp_path: Path) -> None:
    outside = set(run("ip", "-o", "link").splitlines())
    with Lab(tmp_path / "own").up(1, SMALL, LITTLE_SHARED, owner_pid=os.getpid()) as own:
        host = own.host("host1")
        host.spawn_inside(["sleep", "600"], "sleeping")
        LabGuest.make(host, LINUX)
        assert set(run("ip", "-o", "link").splitlines()) == outside, "nothing in the machine's own network"
        assert own.manager.run("virsh", "-c", host.tcp_uri, "hostname").strip() == "host1"
        with pytest.raises(LabPlaceUnfit, match="hosts"):
            Lab(tmp_path / "another").up(0)
    assert_nothing_is_left(tmp_path / "own")
    assert two_hosts.running


def test_a_lab_of_several_hosts_ends_with_its_owner_even_by_sigkill(tmp_path: Path) -> None:
    place = tmp_path / "own"
    script = (
        "import os, sys; from pathlib import Path; from vmferry.lab import *;"
        f"lab = Lab(Path(sys.argv[1])).up(2, [{SMALL[0]!r}], [{LITTLE_SHARED[0]!r}], owner_pid=os.getpid());"
        "lab.host('host2').spawn_inside(['sleep', '600'], 'sleeping');"
        "print('ready', flush=True); sys.stdin.read()"
    )
    try:
        words = [sys.executable, "-c", script, str(place)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"ready\n"
            assert len(lab_processes(place / "host2")) >= 3, "keeper, libvirtd, and what sleeps"
            owner.kill()
        wait_for(lambda: not place.exists() and not lab_processes(place), "the guard to end the lab and itself")
        assert_nothing_is_left(place)
    finally:
        Lab(place).down()


def test_several_hosts_by_command(tmp_path: Path) -> None:
    place = tmp_path / "own"
    at = ("--at", place)
    ferry = VmferryCommand(tmp_path / "state", "none")
    try:
        lab = commands.up_several(2, place, guest=None, owner_pid=os.getpid())
        assert [(host.name, host.address) for host in lab.hosts] == [("host1", "10.231.0.1"), ("host2", "10.231.0.2")]
        ferry.run("lab", "link", "host2", "--rate", "100mbit", "--cut", "silent", *at)
        assert "cut (silent)" in ferry.run("lab", "status", *at).out
        healed = ferry.run("lab", "link", "host2", "--heal", *at, "--json")
        assert json.loads(healed.out)["hosts"][1]["link"] == {"rate": "100mbit", "cut": ""}
        there = ferry.run("lab", "exec", "manager", *at, "--", "virsh", "-c", "qemu+tcp://host2/system", "hostname")
        assert there.out.strip() == "host2"
        assert "already runs" in ferry.run("lab", "up", *at).err
        assert "no host host9" in ferry.run("lab", "link", "host9", "--heal", *at).err
        assert ferry.run("lab", "down", *at).code == 0
        assert_nothing_is_left(place)
    finally:
        Lab(place).down()


def test_a_lab_takes_the_place_of_one_of_several_hosts_whose_processes_have_died(tmp_path: Path) -> None:
    place = tmp_path / "own"
    try:
        commands.up_several(1, place, guest=None, owner_pid=os.getpid())
        for node in ("host1", "manager", "switch"):
            kill_all(place / node)
        alone = commands.up(place, guest=None, owner_pid=os.getpid())
        assert alone.uri == LabHost(place).uri
        commands.down(place)
        assert_nothing_is_left(place)
    finally:
        Lab(place).down()
        LabHost(place).down()


# -- words


def migrate(guest: LabGuest, to: LabHost, storage: str) -> dict[str, str]:
    """Live, with storage, by libvirt alone: new empty disks there, filled while the guest runs."""
    folder = to.storage(storage) / guest.name
    folder.mkdir(exist_ok=True)
    there = {}
    for disk in guest.spec.stamped:
        there[disk.target] = str(folder / disk.file_name)
        run("qemu-img", "create", "-q", "-f", disk.format, there[disk.target], f"{disk.size_mib}M")
    renamed = {str(guest.images()[target]): new for target, new in there.items()}
    source, destination = guest.host.connect(), to.connect()
    try:
        domain = source.lookupByName(guest.name)
        how = (
            libvirt.VIR_MIGRATE_LIVE
            | libvirt.VIR_MIGRATE_NON_SHARED_DISK
            | libvirt.VIR_MIGRATE_PERSIST_DEST
            | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
            | libvirt.VIR_MIGRATE_UNSAFE  # libvirt knows no shared storage by ext4: the lease is on one
        )
        told = {
            libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{to.address}",
            libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: list(there),
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: replaced(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE), renamed),
            libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: replaced(
                domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_INACTIVE), renamed
            ),
        }
        domain.migrate3(destination, told, how)
    finally:
        source.close()
        destination.close()
    return there


def restore_with(connection: libvirt.virConnect, state: Path, renamed: dict[str, str]) -> None:
    xml = replaced(connection.saveImageGetXMLDesc(str(state), libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE), renamed)
    connection.restoreFlags(str(state), xml, 0)


def replaced(xml: str, renamed: dict[str, str]) -> str:
    for old, new in renamed.items():
        xml = xml.replace(f"'{old}'", f"'{new}'")
    return xml


def with_connection(host: LabHost, use: Callable[[libvirt.virConnect], object]) -> None:
    connection = host.connect()
    try:
        use(connection)
    finally:
        connection.close()
