"""The lab's parts that need no libvirt: its place, its record, its XML, kernel modules."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lxml import etree

from vmferry.errors import LabLate, LabNeeds, LabPlaceUnfit, LabProgramFailed, UsageError
from vmferry.lab import DiskSpec, GuestSpec, LabHost, wait_for
from vmferry.lab.boot import Boot
from vmferry.lab.disks import make_disk
from vmferry.lab.domain import Place, domain_xml
from vmferry.lab.kernel import Kernel
from vmferry.lab.processes import in_lab, lab_processes
from vmferry.lab.programs import program, run
from vmferry.lab.record import LabRecord, read_record, write_record

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


def test_this_process_is_in_no_lab(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    assert not in_lab(os.getpid(), tmp_path)
    assert lab_processes(tmp_path) == []


def test_the_domain_is_plain_and_takes_any_name() -> None:
    spec = GuestSpec("a & <b> é", disks=(DiskSpec("vda"), DiskSpec("vdb", format="raw", size_mib=64, region_mib=8)))
    place = Place("u", Path("/lab/guests/u"), {"vda": Path("/s/vda.qcow2"), "vdb": Path("/s/vdb.img")})
    tree = etree.fromstring(domain_xml(spec, place, BOOT))
    assert tree.findtext("name") == "a & <b> é"
    assert [d.get("cache") for d in tree.iterfind("devices/disk/driver")] == ["none", "none"]
    assert "lab.write=vda:224:32,vdb:56:8" in (tree.findtext("os/cmdline") or "")
    assert " mem=" not in (tree.findtext("os/cmdline") or "")


def test_a_disk_with_a_file_system_is_mounted_and_never_stamped() -> None:
    disks = (DiskSpec("vda"), DiskSpec("vdb", format="raw", file_system=True))
    place = Place("u", Path("/lab/guests/u"), {"vda": Path("/s/vda.qcow2"), "vdb": Path("/s/vdb.img")})
    tree = etree.fromstring(domain_xml(GuestSpec("a", disks=disks, agent=True), place, BOOT))
    told = (tree.findtext("os/cmdline") or "").split()
    assert {"lab.write=vda:224:32", "lab.fs=vdb", "lab.agent"} <= set(told)
    assert tree.find("devices/channel/target[@name='org.qemu.guest_agent.0']") is not None


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    for name, needs in {"virtio-blk": "virtio", "virtio": "virtio_ring", "virtio_ring": "", "other": ""}.items():
        (tmp_path / f"{name}.ko").write_bytes(b"x\0depends=" + needs.encode() + b"\0y")
    ordered = Kernel("6.1", Path("k"), tmp_path).with_dependencies(("virtio_blk", "built_in"))
    assert list(ordered) == ["virtio_ring", "virtio", "virtio_blk"]


def test_data_never_reaches_into_the_guests_region(tmp_path: Path) -> None:
    with pytest.raises(LabPlaceUnfit, match="too small"):
        make_disk(DiskSpec(size_mib=64, data_mib=60), tmp_path / "vda.qcow2")


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
