"""kill -9 at each place that matters: the next call goes on, and the copy is true."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from vmferry.transfer import CHUNK, Transfer, Unwatched, compare, copy, drop

CHUNKS = 6

CHILD = """
import os, signal, sys
from pathlib import Path
from vmferry.transfer import Transfer, Unwatched, copy
from vmferry.transfer.engine import copy_loop

def die_at(call, left):
    really = getattr(os, call)
    def counted(*args):
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return really(*args)
    setattr(os, call, counted)

copy_loop.BATCH_CHUNKS = 1
die_at(sys.argv[4], int(sys.argv[5]))
copy(Transfer(*map(Path, sys.argv[1:4])), Unwatched(), streams=1)
"""

KILLS = [
    *(("open", n) for n in (1, 2, 3, 4, 5, 6)),
    *(("fsync", n) for n in (0, 1, 2, 3, 4)),
    *(("ftruncate", n) for n in (0,)),
    *(("pwritev", n) for n in (0, 1, 3, 5)),
    *(("fdatasync", n) for n in (0, 1, 2, 3, 6, 12, 13)),
]


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    source = tmp_path / "disk.img"
    source.write_bytes(random.Random(3).randbytes(CHUNKS * CHUNK + 12345))
    return Transfer(source, tmp_path / ".vmferry-1-disk.img", tmp_path / "bookmarks")


def killed_copy(transfer: Transfer, call: str, count: int) -> None:
    """Run a copy in a child that kills itself before the given call."""
    paths = [str(p) for p in (transfer.source, transfer.destination, transfer.bookmarks)]
    child = subprocess.run([sys.executable, "-c", CHILD, *paths, call, str(count)], timeout=60, check=False)
    assert child.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize(("call", "count"), KILLS)
def test_a_copy_killed_anywhere_goes_on(transfer: Transfer, call: str, count: int) -> None:
    killed_copy(transfer, call, count)
    copied = copy(transfer, Unwatched())
    assert copied.copied_bytes + copied.reused_bytes == copied.data_bytes
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()
    assert compare(transfer, Unwatched()).recopied_chunks == 0


@pytest.mark.parametrize(("call", "count"), KILLS)
def test_a_copy_killed_anywhere_can_be_dropped(transfer: Transfer, call: str, count: int) -> None:
    killed_copy(transfer, call, count)
    drop(transfer)
    assert sorted(p.name for p in transfer.source.parent.iterdir()) == ["disk.img"]


def test_durable_chunks_are_kept_after_a_kill(transfer: Transfer) -> None:
    killed_copy(transfer, "pwritev", 4)
    copied = copy(transfer, Unwatched())
    assert copied.reused_bytes == 4 * CHUNK
    assert transfer.destination.read_bytes() == transfer.source.read_bytes()
