"""Files whole or not at all, and names given and taken back without overwriting, also where there are no links."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.filesystems import exfat_in

from vmferry import durable
from vmferry.errors import DestinationExists
from vmferry.hosts.fence import Fence
from vmferry.hosts.libvirt.driver import LibvirtHosts


def test_a_file_is_replaced_whole_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for content in (b"one", b"two"):
        durable.write(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_of_a_write_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    path.with_name("state.json.new").write_text("half")
    durable.write(path, b"new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


@pytest.mark.parametrize("links", ("links", "no links"))
def test_the_first_to_create_a_file_wins(links: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if links == "no links":
        monkeypatch.setattr(os, "link", _fails(errno.EPERM))
    path = tmp_path / "marker"
    durable.create(path, b"first", 0o644)
    with pytest.raises(FileExistsError):
        durable.create(path, b"second", 0o644)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("first", [path])


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    with exfat_in(tmp_path) as place:
        yield place


def test_a_copy_gets_its_name_on_exfat_and_nothing_is_overwritten(exfat: Path) -> None:
    part, final = exfat / "a.img.vmferry-abcd2345.part", exfat / "a.img"
    part.write_text("copy")
    final.write_text("somebody's")
    with pytest.raises(DestinationExists):
        durable.promote(part, final)
    assert (part.read_text(), final.read_text()) == ("copy", "somebody's")
    final.unlink()
    durable.promote(part, final)
    assert (final.read_text(), part.exists()) == ("copy", False)
    durable.promote(final, part)
    assert (part.read_text(), final.exists()) == ("copy", False)


@pytest.fixture(params=["no links", "too many links", "no links and no renames"])
def poor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that cannot do what others can."""

    monkeypatch.setattr(os, "link", _fails(errno.EMLINK if request.param == "too many links" else errno.EPERM))
    if "renames" in request.param:
        monkeypatch.setattr(durable, "rename_noreplace", _fails(errno.EINVAL))
    return str(request.param)


def test_a_name_is_given_and_taken_back_without_links(poor: str, tmp_path: Path) -> None:
    part, final = tmp_path / "a.img.vmferry-abcd2345.part", tmp_path / "a.img"
    part.write_text("copy")
    for _ in range(2):
        durable.promote(part, final)
        assert [path.name for path in tmp_path.iterdir()] == ["a.img"]
    durable.promote(final, part)
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
    final.write_text("somebody's")
    with pytest.raises(DestinationExists):
        durable.promote(part, final)
    assert final.read_text() == "somebody's"


@pytest.mark.parametrize("claim", ("", "a.img.vmf", "a.img.vmferry-abcd2345.part"))
def test_a_name_that_was_claimed_as_the_process_ended_is_ours_in_both_directions(claim: str, tmp_path: Path) -> None:
    part, final = tmp_path / "a.img.vmferry-abcd2345.part", tmp_path / "a.img"
    part.write_text("copy")
    final.write_text(claim)
    durable.promote(final, part)  # undo
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
    assert part.read_text() == "copy"
    final.write_text(claim)
    durable.promote(part, final)  # once more
    assert [path.name for path in tmp_path.iterdir()] == [final.name]
    assert final.read_text() == "copy"


def test_a_name_that_is_too_long_to_exist_is_absent_and_removed_already(tmp_path: Path) -> None:
    """An undo asks for names that a failed step could not even make."""
    name = tmp_path / ("n" * 300)
    assert not durable.there(name)
    assert not durable.lies(name)
    durable.remove(name)
    assert not LibvirtHosts(Fence(tmp_path)).open("qemu:///system").exists(name)


def test_a_link_that_leads_nowhere_has_its_name_and_is_removed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert durable.lies(link) and not durable.there(link)
    durable.remove(link)
    assert not durable.lies(link)


@pytest.mark.parametrize("name", ("b.img", "vda.qcow2.old"))
def test_a_file_that_no_job_made_is_no_claim(name: str, tmp_path: Path) -> None:
    one, other = tmp_path / name, tmp_path / "a.img"
    one.write_text("one")
    other.touch()
    with pytest.raises(DestinationExists):
        durable.promote(one, other)
    assert (one.read_text(), other.read_text()) == ("one", "")


def _fails(code: int) -> Callable[..., None]:
    """A link or a rename on a file system that has none."""

    def act(*paths: Path) -> None:
        if paths[1].exists():
            raise FileExistsError(errno.EEXIST, "File exists")
        raise OSError(code, os.strerror(code))

    return act
