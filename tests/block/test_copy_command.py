"""vmferry copy, as a person types it."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.copy_command import VMFERRY, vmferry
from tests.support.nbd_servers import loop_device, nbd_on_port, nbd_on_socket, until
from tests.support.places import image

from vmferry.transfer import CHUNK, Unwatched, root_hash_of

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "transfer.md"
DISK = random.Random(9).randbytes(2 * CHUNK) + bytes(2 * CHUNK) + random.Random(8).randbytes(CHUNK)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    return image(tmp_path / "from", DISK).rename(tmp_path / "disk.img")


def remembered(folder: Path) -> list[Path]:
    return list((folder / "state" / "copies").glob("*"))


def test_a_copy_is_proved_named_and_forgotten(disk: Path, tmp_path: Path) -> None:
    ended = vmferry(tmp_path, "copy", "disk.img", "new.img")
    assert ended.returncode == 0, ended.stderr
    assert root_hash_of(disk, Unwatched()) in ended.stdout
    assert (tmp_path / "new.img").read_bytes() == DISK
    assert remembered(tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk.img", "from", "new.img", "state"]


def test_json_ends_with_a_receipt(disk: Path, tmp_path: Path) -> None:
    lines = vmferry(tmp_path, "copy", "--json", "-O", "qcow2", disk, "new.qcow2").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert {line["event"] for line in told} == {"progress", "end"}
    assert told[-1]["root_hash"] == root_hash_of(disk, Unwatched())
    assert (told[-1]["method"], told[-1]["data_bytes"], told[-1]["copied_bytes"]) == ("blocks", 3 * CHUNK, 3 * CHUNK)


def test_an_existing_file_is_refused(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "new.img").write_bytes(b"somebody's")
    ended = vmferry(tmp_path, "copy", "disk.img", "new.img")
    assert (ended.returncode, "never overwritten" in ended.stderr) == (3, True)
    assert (tmp_path / "new.img").read_bytes() == b"somebody's"
    assert remembered(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("disk.img", "ftp://host/disk"), "no protocol known here"),
        (("nothing", "new.img"), "no such file"),
        (("-f", "qed", "disk.img", "new.img"), "no format known here"),
        (("-O", "vmdk", "disk.img", "new.img"), "raw and qcow2"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(disk: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    ended = vmferry(tmp_path, "copy", *words)
    assert (ended.returncode, says in ended.stderr) == (2, True), ended.stderr
    assert remembered(tmp_path) == []
    assert not (tmp_path / "new.img").exists()


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_after_a_kill_the_same_command_goes_on(
    disk: Path, tmp_path: Path, kill: signal.Signals, code: int, format_: str
) -> None:
    words = ["copy", "--streams", "1", "-O", format_, "--json"]
    state = {**os.environ, "VMFERRY_STATE": str(tmp_path / "state")}
    slow = subprocess.Popen([*VMFERRY, *words, "--limit", "4MiB", disk, tmp_path / "new"], env=state)
    until(lambda: bookmarked(tmp_path) >= 3, "a durable chunk")
    slow.send_signal(kill)
    assert slow.wait(20) == code
    assert not (tmp_path / "new").exists()
    assert len(list(tmp_path.glob(".vmferry-copy-*"))) == 1
    told = json.loads(vmferry(tmp_path, *words, disk, tmp_path / "new").stdout.splitlines()[-1])
    if format_ == "raw":  # the tables of a qcow2 are in qemu-nbd's memory for up to a second, and are lost with it
        assert told["reused_bytes"] >= CHUNK
    assert told["copied_bytes"] + told["reused_bytes"] == 3 * CHUNK
    assert told["root_hash"] == root_hash_of(disk, Unwatched())
    assert list(tmp_path.glob(".vmferry-copy-*")) == remembered(tmp_path) == []


def bookmarked(folder: Path) -> int:
    """Records behind the header."""
    return sum((p.stat().st_size - 64) // 48 for p in (folder / "state" / "copies").glob("*/bookmarks"))


def test_a_second_command_for_the_same_copy_is_refused(disk: Path, tmp_path: Path) -> None:
    state = {**os.environ, "VMFERRY_STATE": str(tmp_path / "state")}
    slow = subprocess.Popen([*VMFERRY, "copy", "--limit", "1MiB", "disk.img", "new"], env=state, cwd=tmp_path)
    try:
        until(lambda: bookmarked(tmp_path) >= 1, "the first command")
        ended = vmferry(tmp_path, "copy", "disk.img", "new")
        assert (ended.returncode, "is running" in ended.stderr) == (3, True)
    finally:
        slow.kill()
        slow.wait()


@pytest.mark.parametrize("cut", ["before the link", "before the unlink", "before forgetting"])
def test_a_copy_that_was_cut_off_while_it_got_its_name_is_finished(disk: Path, tmp_path: Path, cut: str) -> None:
    """Each state that a crash can leave there, made by hand."""
    child = f"""
import os
from pathlib import Path
from vmferry.transfer import Place, Unwatched
from vmferry.transfer import standalone
from vmferry.transfer.standalone import DiskCopy

def stop(*_: object) -> None:
    os._exit(9)

link = os.link

def link_and_stop(*names: object) -> None:
    link(*names)
    os._exit(9)

if {cut!r} == "before the link":
    standalone.promote = stop
elif {cut!r} == "before the unlink":
    os.link = link_and_stop
else:
    DiskCopy.forget = DiskCopy._forget = stop
DiskCopy(Place({str(disk)!r}), Place({str(tmp_path / "new")!r}), Path({str(tmp_path / "state" / "copies")!r})).run(
    Unwatched(), Unwatched(), 2
)
"""
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 9
    ended = vmferry(tmp_path, "copy", disk, tmp_path / "new")
    assert ended.returncode == 0, ended.stderr
    assert root_hash_of(tmp_path / "new", Unwatched()) in ended.stdout
    assert list(tmp_path.glob(".vmferry-copy-*")) == remembered(tmp_path) == []


def commands() -> list[str]:
    block = re.search(r"```console\n(.*?)```", DOCS.read_text(), re.S)
    assert block
    return [line.removeprefix("$ ") for line in block[1].splitlines()]


def test_the_commands_in_the_documents_copy(disk: Path, tmp_path: Path) -> None:
    """Each with storage of the test for the names in it; iSCSI, NFS and TLS have tests of their own."""
    (tmp_path / "new").mkdir()
    for name, format_ in (("web01.qcow2", "qcow2"), ("theirs.vmdk", "vmdk")):
        words = ["qemu-img", "convert", "-f", "raw", "-O", format_, str(disk), str(tmp_path / name)]
        subprocess.run(words, check=True)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"\xaa" * len(DISK))
    with (
        loop_device(tmp_path / "a") as device,
        nbd_on_socket(tmp_path / "b", tmp_path) as unix,
        nbd_on_port(tmp_path / "c", tmp_path) as tcp,
    ):
        names = {
            "/srv/new": str(tmp_path / "new"),
            "/dev/vg/web01": str(device),
            "nbd+unix:///?socket=/run/nbd.sock": unix,
            "nbd://storage.example/web01": tcp,
            "50MiB": "500MiB",
        }
        run = [line for line in commands() if not re.search(r"nbds:|iscsi:|nfs:", line)]
        assert len(run) == 6
        for line in run:
            for told, meant in names.items():
                line = line.replace(told, meant)
            ended = vmferry(tmp_path, *shlex.split(line)[1:])
            assert ended.returncode == 0, f"{line}: {ended.stderr}"
            assert root_hash_of(disk, Unwatched()) in ended.stdout, line
