"""vmferry copy --detach and vmferry transfer, as a person types them, with a real worker that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.copy_command import VMFERRY, vmferry
from tests.support.nbd_servers import loop_device, until

from vmferry.transfer import CHUNK

pytestmark = pytest.mark.slow

CHUNKS = 24
DISK = random.Random(2).randbytes(CHUNKS * CHUNK)
KILLS = int(os.environ.get("VMFERRY_KILLS", "2"))
STREAMS = 2
MOST_KILLS = CHUNKS // 2
"""Each leaves one or two chunks more."""


class Place:
    """A folder with a disk, and the worker that its commands start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "disk.img").write_bytes(DISK)

    def run(self, *words: str | Path, code: int = 0) -> str:
        ended = vmferry(self.folder, *words)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    def json(self, *words: str | Path, code: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", code=code).splitlines()[-1])

    def worker(self) -> int | None:
        try:
            return int((self.folder / "state/worker.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def kill_worker(self) -> None:
        pid = self.worker()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the end of the worker")

    def bookmarked(self) -> int:
        return sum((p.stat().st_size - 64) // 48 for p in (self.folder / "state/transfers").glob("*/*/bookmarks"))

    def until_bookmarked(self, count: int) -> None:
        until(lambda: self.bookmarked() >= count, f"{count} records")

    def close(self) -> None:
        pid = self.worker()
        if pid is not None and alive(pid):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def sectors_written(device: Path) -> int:
    return int((Path("/sys/class/block") / device.name / "stat").read_text().split()[6])


def killed_again_and_again(place: Place, id: str, dice: random.Random) -> None:
    """Kill the worker each time that some more chunks are there; the next command starts another."""
    for _ in range(min(KILLS, MOST_KILLS)):
        place.run("recover")
        more = place.bookmarked() + dice.randrange(1, 3)
        place.until_bookmarked(more)
        place.kill_worker()
    assert place.json("transfer", "show", id)["state"] in ("queued", "connecting", "transferring")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_it_goes_on_and_copies_little_twice(place: Place, tmp_path: Path, seed: int) -> None:
    """To a device, whose kernel counts what is written to it."""
    (tmp_path / "behind").write_bytes(bytes(len(DISK)))
    with loop_device(tmp_path / "behind") as device:
        before = sectors_written(device)
        words = ("--streams", str(STREAMS), "--limit", "16MiB")
        id = place.json("copy", "--detach", *words, "disk.img", device)["id"]
        killed_again_and_again(place, id, random.Random(seed))
        place.run("transfer", "limit", id, "none")
        place.run("transfer", "watch", id)
        written = (sectors_written(device) - before) * 512
        assert len(DISK) <= written <= len(DISK) + KILLS * STREAMS * CHUNK
        place.run("transfer", "acknowledge", id)
        assert place.json("verify", id)["outcome"] == "same"
    assert (tmp_path / "behind").read_bytes() == DISK


@pytest.mark.timeout(300)
def test_a_file_comes_whole_through_the_kills_and_only_then_gets_its_name(place: Place) -> None:
    words = ("--streams", str(STREAMS), "--limit", "16MiB", "--acknowledge")
    id = place.json("copy", "--detach", *words, "disk.img", "new.img")["id"]
    killed_again_and_again(place, id, random.Random(3))
    assert not (place.folder / "new.img").exists()
    place.run("transfer", "limit", id, "none")
    place.run("transfer", "watch", id)
    until(lambda: place.json("transfer", "show", id)["state"] == "acknowledged", "its name")
    assert (place.folder / "new.img").read_bytes() == DISK
    assert sorted(p.name for p in place.folder.iterdir()) == ["disk.img", "new.img", "state"]


def test_the_worker_outlives_the_command_and_each_order_is_heard(place: Place) -> None:
    said = place.run("copy", "--detach", "--limit", "4MiB", "--priority", "low", "disk.img", "new.img")
    id = said.split()[1]
    assert f"`vmferry transfer watch {id}`" in said
    assert place.json("transfer", "list")[0]["id"] == id
    assert place.json("transfer", "priority", id, "high")["priority"] == "high"
    assert place.json("transfer", "limit", id[:4], "8MiB")["limit_bytes_s"] == 8 << 20
    assert place.json("transfer", "suspend", id)["state"] == "suspended"
    assert "vmferry transfer resume" in place.run("transfer", "show", id)
    assert place.json("transfer", "resume", id)["state"] == "queued"
    assert place.json("transfer", "cancel", id)["state"] == "cancelled"
    assert sorted(p.name for p in place.folder.iterdir()) == ["disk.img", "state"]
    assert (place.json("transfer", "list"), len(place.json("transfer", "list", "--all"))) == ([], 1)
    place.run("transfer", "watch", id, code=5)


def test_a_watch_ends_with_what_became_of_it(place: Place) -> None:
    id = place.json("copy", "--detach", "--no-progress", "0", "disk.img", "nowhere/new.img")["id"]
    lines = place.run("transfer", "watch", id, code=1).splitlines()
    assert lines[-1].startswith("error: ")
    assert f"vmferry transfer resume {id}" in lines[-1]
    (place.folder / "nowhere").mkdir()
    place.run("transfer", "resume", id)
    assert place.json("transfer", "watch", id)["state"] == "transferred"


def test_a_watcher_lives_through_the_death_of_the_worker(place: Place) -> None:
    id = place.json("copy", "--detach", "--limit", "32MiB", "disk.img", "new.img")["id"]
    state = {**os.environ, "VMFERRY_STATE": str(place.folder / "state")}
    watcher = subprocess.Popen([*VMFERRY, "transfer", "watch", id, "--json"], env=state, stdout=subprocess.PIPE)
    place.until_bookmarked(3)
    place.kill_worker()
    out, _ = watcher.communicate(timeout=60)
    assert (watcher.returncode, json.loads(out.splitlines()[-1])["state"]) == (0, "transferred")


def test_words_that_need_a_worker_are_refused_without_one(place: Place) -> None:
    ended = vmferry(place.folder, "copy", "--priority", "high", "disk.img", "new.img")
    assert (ended.returncode, "need --detach" in ended.stderr) == (2, True)
    ended = vmferry(place.folder, "transfer", "show", "nothing2")
    assert (ended.returncode, "there is no transfer nothing2" in ended.stderr) == (2, True)
    ended = vmferry(place.folder, "verify", "nothing2")
    assert (ended.returncode, "there is no transfer nothing2" in ended.stderr) == (2, True)
