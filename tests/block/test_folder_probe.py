"""What a folder really bears is found before anything is copied to it, on real file systems."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest
from tests.support.filesystems import exfat_in, formatted

from vmferry.hosts.libvirt import folder_probe
from vmferry.hosts.libvirt.folder_probe import User, probe
from vmferry.model import FolderUse, Severity
from vmferry.transfer import Transfer, Unwatched, compare, copy

NOBODY = User(65534, 65534)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and asks as another user")
USE = FolderUse(files=4, largest_bytes=64 << 20, longest_name_bytes=60)
ODD = FolderUse(direct=True, raw_bytes=(374784,))


def run(*words: str | Path) -> str:
    return subprocess.run(tuple(map(str, words)), check=True, capture_output=True, text=True).stdout


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not."""
    if os.geteuid() != 0:
        pytest.skip("asks as another user")
    place = Path(tempfile.mkdtemp(prefix="vmferry-test-", dir="/var/tmp"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def test_what_killed_probes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    old = [tmp_path / f"vmferry-abcd2345.{ending}" for ending in ("probe", "probe.named", "memory")]
    young, another = tmp_path / "vmferry-abcd2346.probe", tmp_path / "space.probe"
    for file in (*old, young, another):
        file.touch()
        if file is not young:
            os.utime(file, (0, 0))
    assert not probe(tmp_path, USE, None)
    assert set(tmp_path.iterdir()) == {old[2], young, another}


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    with exfat_in(tmp_path) as place:
        yield place


def test_an_ordinary_folder_is_fit_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    assert probe(tmp_path, USE, None) == []
    assert list(tmp_path.iterdir()) == []


def test_a_raw_disk_that_ends_within_a_larger_sector_is_found(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with formatted(tmp_path / "large", ("mkfs.ext4", "-q", "-F"), ("mount",), sector=4096) as place:
        (found,) = probe(place, ODD, None)
        assert found.severity is Severity.BLOCKER
        assert "374784 bytes" in found.what
        assert "376832B" in found.cure
        assert "--format qcow2" in found.cure
        assert probe(place, FolderUse(direct=True, raw_bytes=(376832,)), None) == []
        assert [path.name for path in place.iterdir()] == ["lost+found"]
    with formatted(tmp_path / "small", ("mkfs.ext4", "-q", "-F"), ("mount",)) as place:
        assert probe(place, ODD, None) == []


def test_a_folder_below_one_that_qemu_may_not_enter_names_that_one_and_the_cure_cures(open_place: Path) -> None:
    closed = open_place / "closed by' its owner"
    place = closed / "vms"
    place.mkdir(parents=True)
    place.chmod(0o777)
    closed.chmod(0o700)
    (found,) = probe(place, USE, NOBODY)
    assert f"QEMU runs as {NOBODY.name}, who may not enter {closed}" in found.what
    assert f"setfacl -m u:{NOBODY.name}:x {quote(str(closed))}" in found.cure
    assert list(place.iterdir()) == []
    closed.chmod(0o711)
    assert probe(place, USE, NOBODY) == []


def test_a_link_that_leads_through_a_closed_folder_is_found(open_place: Path) -> None:
    (closed := open_place / "closed").mkdir(mode=0o700)
    (real := closed / "real").mkdir()
    (link := open_place / "link").symlink_to(real)
    (found,) = probe(link, USE, NOBODY)
    assert str(closed) in found.what or str(link) in found.what


@ROOT
def test_a_folder_without_inodes_is_found(tmp_path: Path) -> None:
    (place := tmp_path / "few").mkdir()
    run("mount", "-t", "tmpfs", "-o", "nr_inodes=3", "tmpfs", place)
    try:
        (found,) = probe(place, USE, None)
    finally:
        run("umount", place)
    assert "(inodes), the move makes 4" in found.what


@ROOT
def test_a_folder_that_is_full_says_so_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    (place := tmp_path / "full").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place)
    try:
        (place / "all").write_bytes(bytes(4096))
        found = probe(place, ODD, None)
        assert [path.name for path in place.iterdir()] == ["all"]
    finally:
        run("umount", place)
    assert "no space left" in found[-1].what
    assert "Errno" not in found[-1].what


def test_a_folder_whose_name_is_no_text_is_told_of_all_the_same(open_place: Path) -> None:
    closed = Path(os.fsdecode(os.fsencode(open_place) + b"/\xff"))
    (closed / "vms").mkdir(parents=True)
    closed.chmod(0o700)
    (found,) = probe(closed / "vms", USE, NOBODY)
    assert "who may not enter" in found.what


@ROOT
def test_a_storage_that_does_not_answer_is_a_finding(open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_probe, "PROBE_TIMEOUT_S", 0.0)
    (found,) = probe(open_place, USE, NOBODY)
    assert "did not answer" in found.what


@ROOT
def test_a_folder_mounted_read_only_says_so(tmp_path: Path) -> None:
    (place := tmp_path / "sealed").mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place)
    try:
        (found,) = probe(place, USE, None)
    finally:
        run("umount", place)
    assert "takes no file: mounted read-only" in found.what


def test_a_name_that_is_longer_than_the_file_system_bears_is_found(tmp_path: Path) -> None:
    (found,) = probe(tmp_path, FolderUse(longest_name_bytes=300), None)
    assert "takes file names of 255 bytes, the move makes one of 300" in found.what


def test_a_file_larger_than_this_process_may_write_is_found(tmp_path: Path) -> None:
    """In a process of its own: a limit once lowered stays."""
    code = "import resource, signal, sys; from pathlib import Path; from vmferry.model import FolderUse\n"
    code += "from vmferry.hosts.libvirt.folder_probe import probe; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, {resource.RLIM_INFINITY}))\n"
    code += "print(*(f.what for f in probe(Path(sys.argv[1]), FolderUse(largest_bytes=1 << 30), None)))"
    told = run(sys.executable, "-c", code, tmp_path)
    assert "takes no file of 1024 MiB: too large for that file system" in told


def test_exfat_is_fit_though_it_has_no_links(exfat: Path) -> None:
    assert probe(exfat, USE, None) == []
    assert list(exfat.iterdir()) == []


def test_a_copy_of_an_odd_size_that_begins_with_zeros_can_be_opened_past_the_cache(tmp_path: Path) -> None:
    """QEMU takes the sectors for larger ones where the first block is a hole; moving zeros makes holes."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for place, first in (("zeros", bytes(4096)), ("data", b"x" * 4096)):
        with formatted(tmp_path / place, ("mkfs.ext4", "-q", "-F"), ("mount",)) as folder:
            source, copied = folder / "a.img", folder / "copied.img"
            source.write_bytes(first + bytes(300_000) + b"end")
            os.truncate(source, 374784)
            copy(transfer := Transfer(source, copied, tmp_path / f"{place}.bookmarks"), Unwatched())
            compare(transfer, Unwatched())
            for image in (source, copied):
                run("qemu-io", "-f", "raw", "-t", "none", "-c", "read 0 512", image)
            assert copied.read_bytes() == source.read_bytes()
