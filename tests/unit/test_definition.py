"""What libvirt has written down, on libvirt's own test driver."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from vmferry.hosts.libvirt import definition, files, tpm
from vmferry.model import Changes, Definition, Placed

UUID = "6f1c3a52-0000-4000-8000-000000000001"
DISK = "<disk type='file'><source file='/a' startupPolicy='optional'/><target dev='vda'/></disk>"
DRIVE = "<disk type='file' device='cdrom'><source file='/i.iso'/><target dev='sda' bus='sata'/><readonly/></disk>"
XML = f"<domain type='test'><name>n</name><uuid>{UUID}</uuid><memory>1</memory><os><type>hvm</type></os><devices>"
XML += f"{DISK}{DRIVE}</devices></domain>"


@pytest.fixture
def connection() -> Iterator[libvirt.virConnect]:
    opened = libvirt.open("test:///default")
    yield opened
    opened.close()


def test_a_lost_connection_is_not_taken_for_a_vm_that_is_not_there(connection: libvirt.virConnect) -> None:
    """Giving a VM up would have been reported done while it was still defined."""
    assert definition.find(connection, UUID) is None
    assert definition.find(connection, "test") is not None
    lost = libvirt.open("test:///default")
    lost.close()
    with pytest.raises(libvirt.libvirtError):
        definition.find(lost, "test")


def test_a_placeholder_names_no_disk_that_libvirt_may_leave_out(connection: libvirt.virConnect) -> None:
    definition.announce(connection, Definition(UUID, XML), "abcd2345", "there")
    placeholder = connection.lookupByUUIDString(UUID)
    assert definition.marked(placeholder) == "abcd2345"
    source = etree.fromstring(placeholder.XMLDesc(0)).find("./devices/disk[@device='disk']/source")
    assert source is not None
    assert source.get("file", "").startswith("/nonexistent/")
    assert source.get("startupPolicy") is None


def test_a_drive_gets_another_disc_or_none() -> None:
    for media, disc in ((Placed(Path("/there.iso"), "raw"), ["/there.iso"]), (None, [])):
        root = etree.fromstring(definition.text(Definition(UUID, XML), Changes(media={"sda": media})))
        assert root.xpath("./devices/disk[@device='cdrom']/source/@file") == disc
        assert root.xpath("./devices/disk[not(@device)]/source/@file") == ["/a"]


def test_the_state_of_a_tpm_is_written_down_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm, "FOLDER", tmp_path)
    state = tmp_path / UUID / "tpm2/tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"\x00secret")
    (state.parent / ".lock").touch()
    told = tpm.read(UUID)
    assert set(told) == {"tpm2/tpm2-00.permall"}
    tpm.remove(UUID)
    assert tpm.read(UUID) == {}
    tpm.write(UUID, told)
    assert state.read_bytes() == b"\x00secret"
    assert state.stat().st_mode & 0o777 == 0o600


def test_a_tpm_is_only_ever_looked_for_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpm, "FOLDER", tmp_path / "swtpm")
    (tmp_path / "swtpm").mkdir()
    for uuid in ("..", "", "../..", f"{UUID}/.."):
        with pytest.raises(ValueError, match="UUID"):
            tpm.remove(uuid)
    content = b64encode(b"x").decode()
    tpm.write(UUID, {"../../out.permall": content, f"{tmp_path}/out.permall": content, "tpm2/other": content})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_copy_that_qemu_has_rounded_up_to_whole_sectors_has_the_same_content(tmp_path: Path) -> None:
    """Seen: a disc of 1,000,000 bytes, copied over NBD, was not recognised, and refused as a file that exists."""
    disc, copy = tmp_path / "disc", tmp_path / "copy"
    disc.write_bytes(b"x" * 1_000_000)
    copy.write_bytes(b"x" * 1_000_000 + bytes(448))
    assert files.content_of(disc) == files.content_of(copy) != ""
    copy.write_bytes(b"x" * 999_999 + b"y" + bytes(448))
    assert files.content_of(disc) != files.content_of(copy)
    assert files.content_of(tmp_path) == files.content_of(tmp_path / "none") == ""
