"""Who uses an image: of VMs that are off by the images' headers, of running ones as libvirt tells.

libvirt's own test driver keeps the definitions: it runs nothing, and tells of a VM what it was given.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from tests.block.servers import needs

from vmferry.hosts import images, users
from vmferry.hosts.users import users as users_of
from vmferry.model import Image, Placed

VM = """<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os><devices>
<disk type='file'><driver name='qemu' type='{format}'/><source file='{file}'/>{below}<target dev='vda' bus='virtio'/>
</disk></devices></domain>"""
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
    monkeypatch.setattr(users, "SETTLED_NS", 0)
    return noted(monkeypatch)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    read = images.chain

    def noting(placed: Placed) -> list[Image]:
        assert isinstance(placed.path, Path)
        seen.append(placed.path)
        return read(placed)

    monkeypatch.setattr(images, "chain", noting)
    return seen


def vm(name: str, file: Path, format_: str = "qcow2", below: str = "") -> str:
    return VM.format(name=name, file=file, format=format_, below=below)


def image(at: Path, on: Path | None = None) -> Path:
    needs("qemu-img")
    if on is None:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(at), "1M"], check=True)
    else:
        images.make_overlay(at, Placed(on, "qcow2"))
    return at


def test_a_vm_that_is_off_uses_all_that_its_image_rests_on(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path]
) -> None:
    base = image(tmp_path / "base")
    top = image(tmp_path / "top", image(tmp_path / "middle", base))
    one, other = conn.defineXML(vm("b", top)), conn.defineXML(vm("a", image(tmp_path / "clone", base)))
    assert users_of(conn, base) == (other.UUIDString(), one.UUIDString())
    assert users_of(conn, top) == (one.UUIDString(),)
    link = tmp_path / "link"
    link.symlink_to(base)
    assert len(users_of(conn, link)) == 2
    assert users_of(conn, tmp_path / "nobody's") == ()
    assert sorted(reads) == [tmp_path / "clone", top]


@pytest.mark.parametrize("changed", ["top", "middle"])
def test_what_rests_on_another_image_meanwhile_is_read_again(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path], changed: str
) -> None:
    base, new = image(tmp_path / "base"), image(tmp_path / "new")
    top = image(tmp_path / "top", image(tmp_path / "middle", base))
    mine = (conn.defineXML(vm("mine", top)).UUIDString(),)
    assert users_of(conn, base) == mine
    assert users_of(conn, new) == ()
    images.rebase(tmp_path / changed, Placed(new, "qcow2"))
    assert users_of(conn, base) == ()
    assert users_of(conn, new) == mine
    assert reads == [top, top]


def test_what_has_just_been_written_is_read_each_time(
    conn: libvirt.virConnect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = noted(monkeypatch)
    base = image(tmp_path / "base")
    top = image(tmp_path / "top", base)
    conn.defineXML(vm("mine", top))
    assert [len(users_of(conn, base)) for _ in range(3)] == [1, 1, 1]
    assert reads == [top] * 3


def test_of_a_running_vm_libvirt_is_believed_and_of_a_raw_image_its_format(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path]
) -> None:
    base, plain = image(tmp_path / "base"), tmp_path / "plain"
    plain.touch()
    top = image(tmp_path / "top", base)
    runs = conn.createXML(vm("runs", top, below=BELOW.format(file=base, below=END)))
    conn.defineXML(vm("plain", plain, "raw"))
    assert users_of(conn, base) == (runs.UUIDString(),)
    assert len(users_of(conn, plain)) == 1
    assert reads == []


def test_where_libvirt_does_not_tell_the_end_of_a_chain_the_headers_do(
    conn: libvirt.virConnect, tmp_path: Path, reads: list[Path]
) -> None:
    base = image(tmp_path / "base")
    top = image(tmp_path / "top", image(tmp_path / "middle", base))
    conn.createXML(vm("runs", top, below=BELOW.format(file=tmp_path / "middle", below="")))
    assert len(users_of(conn, base)) == 1
    assert reads == [top]


def test_a_vm_whose_image_is_gone_uses_its_name(conn: libvirt.virConnect, tmp_path: Path) -> None:
    conn.defineXML(vm("gone", tmp_path / "gone"))
    assert len(users_of(conn, tmp_path / "gone")) == 1
