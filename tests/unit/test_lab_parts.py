"""The lab's parts that need no libvirt: its place, its record, its XML, kernel modules."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lxml import etree

from vmferry.errors import LabLate, LabLinkUnfit, LabNeeds, LabPlaceUnfit, LabProgramFailed, UsageError
from vmferry.lab import DiskSpec, GuestSpec, LabHost, wait_for
from vmferry.lab.guests.boot import Boot
from vmferry.lab.guests.disks import make_disk
from vmferry.lab.guests.domain import GuestFiles, domain_xml
from vmferry.lab.guests.kernel import Kernel
from vmferry.lab.hosts.links import Cable
from vmferry.lab.hosts.node import LabNode
from vmferry.lab.hosts.processes import in_lab, lab_processes
from vmferry.lab.hosts.record import HostsRecord, LabRecord, read_hosts, read_record, write_hosts, write_record
from vmferry.lab.programs import program, run

BOOT = Boot(Path("/k"), Path("/i"), "quiet", "tcg")


def test_a_place_whose_socket_path_would_be_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabPlaceUnfit, match="too long"):
        LabHost(tmp_path / ("x" * 90)).up()


def test_a_place_below_run_is_refused() -> None:
    with pytest.raises(LabPlaceUnfit, match="hide"):
        LabHost(Path("/run/lab")).up()


def test_a_folder_that_is_no_lab_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(UsageError):
        LabHost(tmp_path).up()
    LabHost(tmp_path).down()
    assert (tmp_path / "letters").read_text() == "dear"


def test_the_record_is_read_as_written(tmp_path: Path) -> None:
    record = LabRecord("id", storages=("a",)).with_(keeper_pid=7)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "none") is None


def test_the_record_of_several_hosts_is_read_as_written(tmp_path: Path) -> None:
    record = HostsRecord("id", ("host1", "host2"), ("shared",))
    write_hosts(tmp_path, record)
    assert read_hosts(tmp_path) == record
    assert read_hosts(tmp_path / "none") is None


@pytest.mark.parametrize("rate", ["fast", "100", "0mbit", "100mbit burst 1", "-1mbit"])
def test_a_link_takes_no_rate_that_is_none(rate: str, tmp_path: Path) -> None:
    with pytest.raises(LabLinkUnfit, match="100mbit"):
        Cable(LabNode(tmp_path / "switch"), LabNode(tmp_path / "host1")).shape(rate)
    assert not list(tmp_path.iterdir())


def test_a_program_that_was_never_started_does_not_run_and_cannot_be_started_again(tmp_path: Path) -> None:
    node = LabNode(tmp_path)
    assert node.pid_of("agent") is None
    node.kill("agent")
    with pytest.raises(LabProgramFailed, match="ever started"):
        node.start("agent")


def test_this_process_is_in_no_lab(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert not in_lab(os.getpid(), tmp_path)
    assert lab_processes(tmp_path) == []


def test_the_domain_is_plain_and_takes_any_name() -> None:
    spec = GuestSpec("a & <b> é", disks=(DiskSpec("vda"), DiskSpec("vdb", format="raw", size_mib=64, region_mib=8)))
    place = GuestFiles("u", Path("/lab/guests/u"), {"vda": Path("/s/vda.qcow2"), "vdb": Path("/s/vdb.img")})
    tree = etree.fromstring(domain_xml(spec, place, BOOT))
    assert tree.findtext("name") == "a & <b> é"
    assert [d.get("cache") for d in tree.iterfind("devices/disk/driver")] == ["none", "none"]
    assert "lab.write=vda:224:32,vdb:56:8" in (tree.findtext("os/cmdline") or "")
    assert " mem=" not in (tree.findtext("os/cmdline") or "")


def test_a_disk_with_a_file_system_is_mounted_and_never_stamped() -> None:
    disks = (DiskSpec("vda"), DiskSpec("vdb", format="raw", file_system=True))
    place = GuestFiles("u", Path("/lab/guests/u"), {"vda": Path("/s/vda.qcow2"), "vdb": Path("/s/vdb.img")})
    tree = etree.fromstring(domain_xml(GuestSpec("a", disks=disks, agent=True), place, BOOT))
    told = (tree.findtext("os/cmdline") or "").split()
    assert {"lab.write=vda:224:32", "lab.fs=vdb", "lab.agent"} <= set(told)
    assert tree.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None


def test_a_lease_may_be_open_twice_and_is_never_stamped() -> None:
    disks = (DiskSpec("vda"), DiskSpec("vdb", format="raw", lease=True))
    place = GuestFiles("u", Path("/lab/guests/u"), {"vda": Path("/s/vda.qcow2"), "vdb": Path("/s/vdb.img")})
    tree = etree.fromstring(domain_xml(GuestSpec("a", disks=disks), place, BOOT))
    told = (tree.findtext("os/cmdline") or "").split()
    assert {"lab.write=vda:224:32", "lab.lease=vdb"} <= set(told)
    shareable = [d.find("target") for d in tree.iterfind("devices/disk") if d.find("shareable") is not None]
    assert [target.get("dev") for target in shareable if target is not None] == ["vdb"]


def test_a_guests_console_has_one_path_on_every_host_of_a_lab() -> None:
    place = GuestFiles("u", Path("/lab/host1/guests/u"), {"vda": Path("/s/vda.qcow2")}, Path("/lab/guests/u"))
    tree = etree.fromstring(domain_xml(GuestSpec("a", disks=(DiskSpec("vda"),)), place, BOOT))
    told = [source.get("path") for source in tree.iterfind("devices/serial/source")]
    assert told == ["/lab/guests/u/console.log", "/lab/guests/u/commands"]
    assert place.console == Path("/lab/host1/guests/u/console.log")


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    for name, needs in {"virtio-blk": "virtio", "virtio": "virtio_ring", "virtio_ring": "", "other": ""}.items():
        (tmp_path / f"{name}.ko").write_bytes(b"x\0depends=" + needs.encode() + b"\0y")
    ordered = Kernel("6.1", Path("k"), tmp_path).with_dependencies(("virtio_blk", "built_in"))
    assert list(ordered) == ["virtio_ring", "virtio", "virtio_blk"]


def test_data_never_reaches_into_the_guests_region(tmp_path: Path) -> None:
    with pytest.raises(LabPlaceUnfit, match="too small"):
        make_disk(DiskSpec(size_mib=64, data_mib=60), tmp_path / "vda.qcow2")


def test_a_disk_may_hold_what_files_hold_each_from_a_block_of_its_own(tmp_path: Path) -> None:
    folder, image = tmp_path / "files", tmp_path / "vda.img"
    (folder / "b").mkdir(parents=True)
    (folder / "a").write_bytes(b"a" * 5000)
    (folder / "b/c").write_bytes(b"c" * (2 << 20))
    (folder / "link").symlink_to("a")
    make_disk(DiskSpec(format="raw", size_mib=64, data_mib=2, data_of=folder), image)
    held = (b"a" * 5000).ljust(8192, b"\0") + b"c" * (2 << 20)
    assert image.read_bytes() == held[: 2 << 20].ljust(64 << 20, b"\0")
    with pytest.raises(LabPlaceUnfit, match="hold less than 3 MiB"):
        make_disk(DiskSpec(format="raw", size_mib=64, data_mib=3, data_of=folder), tmp_path / "vdb.img")


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(LabNeeds, match="apt-get install no-such-program"):
        program("no-such-program")


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(LabProgramFailed, match="No such file"):
        run("ls", "/no/such/place")


def test_waiting_in_vain_ends_with_the_logs_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    with pytest.raises(LabLate, match=r"waited 0\.05 s in vain for a wonder: .* ends with one | two"):
        wait_for(lambda: False, "a wonder", 0.05, log)
