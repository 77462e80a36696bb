"""Who needs a file: of VMs by all that libvirt has of them, of images by their headers, of programs by the kernel.

libvirt's own test driver keeps the definitions: it runs nothing, and tells of a VM what it was given.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import libvirt
import pytest
from tests.support.nbd_servers import needs

from vmferry.hosts.libvirt import file_users, header_cache, headers, image_folders
from vmferry.hosts.libvirt.file_users import vms_using
from vmferry.hosts.libvirt.headers import Header
from vmferry.model import FileUser, NamedIn, Placed, Url, UserKind
from vmferry.qemu import img

VM = """<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type>{os}</os><devices>
{disk}</devices></domain>"""
DISK = """<disk type='file'><driver name='qemu' type='{format}'/><source file='{file}'/>{below}
<target dev='vda' bus='virtio'/></disk>"""
BELOW = "<backingStore type='file'><format type='qcow2'/><source file='{file}'/>{below}</backingStore>"
END = "<backingStore/>"


@pytest.fixture
def conn() -> Iterator[libvirt.virConnect]:
    made = libvirt.open("test:///default")
    yield made
    made.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images whose headers were read; what was written counts as old at once."""
    monkeypatch.setattr(header_cache, "SETTLED_NS", 0)
    return noted(monkeypatch)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    read = headers.read

    def noting(path: Path) -> Header:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(headers, "read", noting)
    return seen


def vm(name: str, file: Path, format_: str = "qcow2", below: str = "", os_: str = "") -> str:
    return VM.format(name=name, os=os_, disk=DISK.format(file=file, format=format_, below=below))


def image(at: Path, on: Path | None = None, named: str | None = None) -> Path:
    needs("qemu-img")
    words = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if on is None:
        subprocess.run([*words, str(at), "1M"], check=True)
    else:
        subprocess.run([*words, "-u", "-F", "qcow2", "-b", named or str(on), str(at), "1M"], check=True)
    return at


def users(conn: libvirt.virConnect, file: Path | Url, *folders: Path) -> list[FileUser]:
    return file_users.file_users(conn, [file], folders)


def kinds(found: Sequence[FileUser]) -> set[UserKind]:
    return {user.kind for user in found}


# -- which VMs


def test_a_vm_that_is_off_uses_all_that_its_image_rests_on(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path]
) -> None:
    base = image(tmp_path / "base")
    top = image(tmp_path / "top", image(tmp_path / "middle", base))
    one, other = conn.defineXML(vm("b", top)), conn.defineXML(vm("a", image(tmp_path / "clone", base)))
    assert vms_using(conn, base) == (other.UUIDString(), one.UUIDString())
    assert vms_using(conn, top) == (one.UUIDString(),)
    link = tmp_path / "link"
    link.symlink_to(base)
    assert len(vms_using(conn, link)) == 2
    assert vms_using(conn, tmp_path / "nobody's") == ()
    assert sorted(reads) == sorted([base, tmp_path / "clone", tmp_path / "middle", top])


@pytest.mark.parametrize("changed", ["top", "middle"])
def test_what_rests_on_another_image_meanwhile_is_read_again(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path], changed: str
) -> None:
    base, new = image(tmp_path / "base"), image(tmp_path / "new")
    top = image(tmp_path / "top", image(tmp_path / "middle", base))
    mine = (conn.defineXML(vm("mine", top)).UUIDString(),)
    assert vms_using(conn, base) == mine
    assert vms_using(conn, new) == ()
    img.rebase(tmp_path / changed, Placed(new, "qcow2"))
    reads.clear()
    assert vms_using(conn, base) == ()
    assert vms_using(conn, new) == mine
    assert reads == [tmp_path / changed, new]


def test_what_has_just_been_written_is_read_each_time(
    conn: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = noted(monkeypatch)
    top = image(tmp_path / "top", image(tmp_path / "base"))
    conn.defineXML(vm("mine", top))
    assert [len(vms_using(conn, tmp_path / "base")) for _ in range(3)] == [1, 1, 1]
    assert reads.count(top) == 3


def test_the_header_of_a_raw_disk_is_the_guests_and_is_not_read(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path]
) -> None:
    """A guest can write there what it likes."""
    base = image(tmp_path / "base")
    forged = image(tmp_path / "forged", base)
    conn.defineXML(vm("forger", forged, "raw"))
    assert users(conn, base, tmp_path) == []
    assert forged not in reads
    assert len(users(conn, forged)) == 1


def test_a_vm_whose_image_is_gone_uses_its_name(conn: libvirt.virConnect, tmp_path: Path) -> None:
    conn.defineXML(vm("gone", tmp_path / "gone"))
    assert len(vms_using(conn, tmp_path / "gone")) == 1


@pytest.mark.parametrize(
    "os_",
    [
        "<kernel>{}</kernel>",
        "<initrd>{}</initrd>",
        "<dtb>{}</dtb>",
        "<loader>{}</loader>",
        "<loader readonly='yes' type='pflash'>/fw</loader><nvram>{}</nvram>",
    ],
)
def test_whatever_is_named_outside_of_disks_is_needed_too(conn: libvirt.virConnect, tmp_path: Path, os_: str) -> None:
    file = tmp_path / "a file"
    file.touch()
    conn.defineXML(vm("boots", tmp_path / "disk", os_=os_.format(file)))
    (found,) = users(conn, file)
    assert (found.kind, found.named_in) == (UserKind.VM, NamedIn.NEXT_START)


def test_what_a_snapshot_names_is_needed(conn: libvirt.virConnect, tmp_path: Path) -> None:
    base = image(tmp_path / "base")
    domain = conn.defineXML(vm("went back", image(tmp_path / "clone", base)))
    domain.snapshotCreateXML("<domainsnapshot><name>then</name></domainsnapshot>", 0)
    xml = vm("went back", image(tmp_path / "fresh"))
    conn.defineXML(xml.replace("<memory>", f"<uuid>{domain.UUIDString()}</uuid><memory>"))
    found = [user for user in users(conn, base) if user.kind is UserKind.VM]
    assert {user.named_in for user in found} == {NamedIn.SNAPSHOT}
    assert "snapshot then" in str(found[0])


# -- what no VM names


@pytest.mark.parametrize(
    "named",
    [
        "{base}",
        "base",
        "./base",
        "../folder/base",
        "file:{base}",
        "json:{json}",
        "json:{flat}",
        "{link}",
    ],
)
def test_an_image_that_no_vm_names_needs_what_its_header_names_in_any_way(
    named: str, conn: libvirt.virConnect, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    base, link = image(folder / "base"), tmp_path / "link"
    link.symlink_to(base)
    nested = json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}})
    flat = json.dumps({"driver": "qcow2", "file.driver": "file", "file.filename": str(base)})
    clone = image(folder / "clone", base, named.format(base=base, link=link, json=nested, flat=flat))
    (found,) = users(conn, base)
    assert (found.kind, found.id) == (UserKind.IMAGE, str(clone))


def test_an_image_in_a_folder_within_and_one_that_is_a_link_are_seen(conn: libvirt.virConnect, tmp_path: Path) -> None:
    base, away = image(tmp_path / "base"), tmp_path / "x" / "away"
    (tmp_path / "vm").mkdir()
    away.parent.mkdir()
    image(tmp_path / "vm" / "clone", base)
    image(away, base)
    assert len(users(conn, base)) == 2


def test_a_relative_name_counts_from_the_links_folder_too(conn: libvirt.virConnect, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    base = image(tmp_path / "base")
    image(tmp_path / "real" / "clone", base, "base")
    (tmp_path / "clone").symlink_to(tmp_path / "real" / "clone")
    assert UserKind.IMAGE in kinds(users(conn, base))


def test_a_data_file_is_needed_by_its_image(conn: libvirt.virConnect, tmp_path: Path) -> None:
    needs("qemu-img")
    data, top = tmp_path / "data", tmp_path / "top"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", str(top), "1M"]
    subprocess.run(words, check=True)
    assert [user.id for user in users(conn, data)] == [str(top)]


@pytest.mark.parametrize("format_", ["qed", "vmdk", "qcow"])
def test_other_formats_that_stack_are_read(format_: str, conn: libvirt.virConnect, tmp_path: Path) -> None:
    needs("qemu-img")
    base, top = tmp_path / f"base.{format_}", tmp_path / f"top.{format_}"
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, str(base), "1M"], check=True)
    words = ["qemu-img", "create", "-q", "-f", format_, "-F", format_, "-b", str(base), str(top)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip(f"this qemu-img makes no {format_} on another")
    assert [user.id for user in users(conn, base)] == [str(top)]


def test_a_header_that_cannot_be_read_may_need_anything(conn: libvirt.virConnect, tmp_path: Path) -> None:
    base, broken = image(tmp_path / "base"), tmp_path / "broken"
    broken.write_bytes(b"QFI\xfb\0\0\0\x03" + (1 << 20).to_bytes(8, "big") + (40).to_bytes(4, "big") + bytes(100))
    (found,) = users(conn, base)
    assert found.kind is UserKind.UNKNOWN
    assert "cannot be read" in str(found)
    assert str(broken) in str(found)


def saved_memory(path: Path, xml: str) -> None:
    """As libvirt writes it, without the memory."""
    text = xml.encode() + b"\0"
    path.write_bytes(b"LibvirtQemudSave" + struct.pack("<II", 2, len(text)) + bytes(92 - 24) + text)


def test_a_saved_memory_needs_the_disks_that_its_vm_was_on(conn: libvirt.virConnect, tmp_path: Path) -> None:
    """`virsh save` of a VM that nothing else knows of."""
    base = image(tmp_path / "base")
    (tmp_path / "far").mkdir()
    clone = image(tmp_path / "far" / "clone", base)
    saved_memory(tmp_path / "web.save", vm("web", clone))
    found = [user for user in users(conn, base) if user.who.startswith("the saved memory")]
    assert [user.id for user in found] == [str(tmp_path / "web.save")]


def test_a_saved_memory_that_cannot_be_read_may_need_anything(conn: libvirt.virConnect, tmp_path: Path) -> None:
    base = image(tmp_path / "base")
    saved_memory(tmp_path / "web.save", "<domain>")
    (found,) = users(conn, base)
    assert found.kind is UserKind.UNKNOWN
    assert "web.save" in str(found)


def test_a_folder_with_more_files_than_can_be_looked_at_may_hold_a_user(
    conn: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "MOST", 3)
    base = image(tmp_path / "base")
    for number in range(5):
        (tmp_path / f"{number}").touch()
    assert kinds(users(conn, base)) == {UserKind.UNKNOWN}


# -- who has it open


def test_a_program_that_serves_it_or_writes_to_it_needs_it_and_one_that_reads_it_does_not(
    conn: libvirt.virConnect, tmp_path: Path
) -> None:
    base, other = image(tmp_path / "base"), image(tmp_path / "other")
    with base.open("rb") as reading, other.open("r+b") as writing:
        held = [subprocess.Popen(["sleep", "60"], stdin=file) for file in (reading, writing)]
    try:
        assert users(conn, base) == []
        (found,) = users(conn, other)
        assert (found.kind, found.id) == (UserKind.PROCESS, str(held[1].pid))
    finally:
        for process in held:
            process.kill()
            process.wait()


def test_a_device_is_one_whatever_node_names_it(conn: libvirt.virConnect, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a device node needs root")
    nodes = [tmp_path / "one", tmp_path / "other"]
    for node in nodes:
        try:
            os.mknod(node, 0o600 | 0o060000, os.makedev(7, 250))
        except OSError as error:
            pytest.skip(f"no device nodes here: {error}")
    conn.defineXML(vm("on a device", nodes[0], "raw"))
    assert len(vms_using(conn, nodes[1])) == 1
