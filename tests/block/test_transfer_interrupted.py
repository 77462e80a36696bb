"""Interruptions at random, a hundred in `make long`: the copy ends identical, each costs no more than was in flight."""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.nbd_servers import answers, nbdkit, running, until
from tests.support.places import image

from vmferry.errors import DestinationFull, VmferryError
from vmferry.transfer import CHUNK, Place, Transfer, Unwatched, compare, copy, drop, root_hash_of

pytestmark = pytest.mark.slow

CHUNKS, STREAMS = 8, 2
SIZE = CHUNKS * CHUNK
INTERRUPTIONS = int(os.environ.get("VMFERRY_INTERRUPTIONS", "30"))

CHILD = """
import os, signal, sys
from pathlib import Path
from vmferry.transfer import Place, Transfer, Unwatched, copy

class Dying(Unwatched):
    left = int(sys.argv[4])

    def check(self):
        self.left -= 1
        if self.left < 0:
            os.kill(int(sys.argv[5]) or os.getpid(), signal.SIGKILL)

copy(Transfer(Path(sys.argv[1]), Place(sys.argv[2]), Path(sys.argv[3])), Dying(), streams=2)
"""


class Target:
    """An NBD server on a raw file that logs what it is asked to write, and can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.behind = image(folder, b"\xaa" * SIZE)
        self.place = Place(f"nbd+unix:///?socket={folder / 'server'}")
        self._folder = folder
        self._logs = 0

    @contextmanager
    def up(self) -> Iterator[int]:
        """Gives its process id."""
        at = self._folder / "server"
        at.unlink(missing_ok=True)
        self._logs += 1
        words = ["nbdkit", "-f", "-U", str(at), "--filter=log", "file", str(self.behind)]
        log = self._folder / f"{self._logs}.writes"
        with running(*words, f"logfile={log}", log=self._folder / "nbdkit.log") as process:
            until(lambda: answers(at), "nbdkit's socket")
            yield process.pid

    def written(self) -> int:
        """Bytes of all write requests, from the servers' logs."""
        logs = "".join(path.read_text() for path in self._folder.glob("*.writes"))
        return sum(int(count, 16) for count in re.findall(r" Write id=\d+ offset=\S+ count=(0x[0-9a-f]+)", logs))


@pytest.mark.timeout(800)  # on a busy machine 120 s were seen
def test_kills_of_us_and_of_the_server_cost_a_chunk_a_stream_each(tmp_path: Path) -> None:
    """Half of them end our process, half the server; a copy that finishes in spite of it is dropped and begun again."""
    chance = random.Random(20261123)
    source, target = tmp_path / "disk.img", Target(tmp_path)
    source.write_bytes(chance.randbytes(SIZE))
    transfer = Transfer(source, target.place, tmp_path / "bookmarks")
    interrupted = finished = 0
    while interrupted < INTERRUPTIONS:
        with target.up() as server:
            victim = chance.choice([0, server])
            words = [
                str(source),
                target.place.at,
                str(transfer.bookmarks),
                str(chance.randrange(3 * CHUNKS)),
                str(victim),
            ]
            child = subprocess.run(
                [sys.executable, "-c", CHILD, *words], stderr=subprocess.PIPE, timeout=60, check=False
            )
        assert child.returncode in ((0, -signal.SIGKILL) if victim == 0 else (0, 1)), child.stderr.decode()
        interrupted += child.returncode != 0
        if child.returncode == 0:
            finished += 1
            drop(transfer)
            os.truncate(target.behind, 0)
            os.truncate(target.behind, SIZE)
    with target.up():
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).recopied_chunks == 0
    assert copied.root_hash == root_hash_of(source, Unwatched())
    assert target.behind.read_bytes() == source.read_bytes()
    assert SIZE < target.written() <= (finished + 1) * SIZE + INTERRUPTIONS * STREAMS * CHUNK


@contextmanager
def failing(folder: Path, size: int, what: str, error: str) -> Iterator[tuple[Place, Path]]:
    """A server whose requests of a kind fail as long as a file exists."""
    trigger = folder / "fails"
    words = [
        "--filter=error",
        "memory",
        str(size),
        f"error={error}",
        f"error-{what}-rate=100%",
        f"error-file={trigger}",
    ]
    with nbdkit(folder, *words) as url:
        yield Place(url), trigger


@pytest.mark.parametrize("what", ["pwrite", "zero", "extents"])
def test_an_error_of_the_server_that_passes_costs_nothing(tmp_path: Path, what: str) -> None:
    source = tmp_path / "disk.img"
    source.write_bytes(random.Random(2).randbytes(3 * CHUNK) + bytes(CHUNK))
    with failing(tmp_path, 4 * CHUNK, what, "EIO") as (place, trigger):
        transfer = Transfer(source, place, tmp_path / "bookmarks")
        if what == "zero":  # there has to be something to zero
            copy(full := Transfer(image(tmp_path, b"\xaa" * 4 * CHUNK), place, tmp_path / "junk"), Unwatched())
            drop(full)
        trigger.touch()
        for _ in range(3):
            with pytest.raises(VmferryError, match=r"cannot be (read|written)"):
                copy(transfer, Unwatched())
        trigger.unlink()
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).root_hash == copied.root_hash == root_hash_of(source, Unwatched())


def test_what_can_no_longer_be_read_back_does_not_pass(tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    source.write_bytes(random.Random(2).randbytes(2 * CHUNK))
    with failing(tmp_path, 2 * CHUNK, "pread", "EIO") as (place, trigger):
        transfer = Transfer(source, place, tmp_path / "bookmarks")
        copy(transfer, Unwatched())
        trigger.touch()
        with pytest.raises(VmferryError, match="do not trust that storage"):
            compare(transfer, Unwatched())
        trigger.unlink()
        assert compare(transfer, Unwatched()).recopied_chunks == 0


def test_a_source_that_cannot_be_read_is_named_with_the_place(tmp_path: Path) -> None:
    with failing(tmp_path, 2 * CHUNK, "pread", "EIO") as (place, trigger):
        trigger.touch()
        (tmp_path / "junk").write_bytes(b"\xaa" * 2 * CHUNK)
        copy(Transfer(tmp_path / "junk", place, tmp_path / "junk-bookmarks"), Unwatched())
        with pytest.raises(VmferryError, match=r"socket=.*cannot be read at byte"):
            copy(Transfer(place, tmp_path / "copy", tmp_path / "bookmarks"), Unwatched())


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_a_full_storage_that_gets_space_again_goes_on(tmp_path: Path, format_: str) -> None:
    source, small = tmp_path / "disk.img", tmp_path / "small"
    source.write_bytes(random.Random(2).randbytes(4 * CHUNK))
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root to mount a tmpfs")
    try:
        (small / "filler").write_bytes(bytes(14 * 1024 * 1024))
        transfer = Transfer(Place(str(source)), Place(str(small / "new"), format_), tmp_path / "bookmarks")
        with pytest.raises(DestinationFull):
            copy(transfer, Unwatched(), streams=1)
        (small / "filler").unlink()
        copied = copy(transfer, Unwatched())
        assert compare(transfer, Unwatched()).root_hash == copied.root_hash
        assert copied.reused_bytes > 0
    finally:
        subprocess.run(["umount", str(small)], check=True)
