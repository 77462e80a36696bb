"""A disk that is served on a socket at one end of a tunnel, and copied from the socket at the other end."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.nbd_servers import certificates, nbd_on_socket
from tests.support.tunnels import tunnel_to

from vmferry.errors import VmferryError
from vmferry.transfer import CHUNK, Place, Transfer, Unwatched, compare, copy, root_hash_of

DISK = random.Random(9).randbytes(6 * CHUNK) + bytes(2 * CHUNK) + b"text " * (CHUNK // 5)


class Cutting(Unwatched):
    """Cuts the tunnel before the third piece of the copy."""

    def __init__(self, cut: Callable[[], None]) -> None:
        super().__init__()
        self._cut, self._left = cut, 3

    def check(self) -> None:
        self._left -= 1
        if not self._left:
            self._cut()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(DISK + bytes(-len(DISK) % 4096))
    return made


def test_a_copy_through_a_tunnel_that_is_cut_goes_on_through_a_new_one(tmp_path: Path, disk: Path) -> None:
    keys, here = certificates(tmp_path / "keys"), tmp_path / "here"
    transfer = Transfer(Place(f"nbd+unix:///?socket={here}"), Place(str(tmp_path / "copy")), tmp_path / "bookmarks")
    with nbd_on_socket(disk, tmp_path):
        served = tmp_path / "disk.img.sock"
        with tunnel_to(served, here, keys) as cut, pytest.raises(VmferryError) as lost:
            copy(transfer, Cutting(cut), streams=1)
        assert lost.value.passing, lost.value
        with tunnel_to(served, here, keys):
            copied = copy(transfer, Unwatched())
            assert compare(transfer, Unwatched()).recopied_chunks == 0
    assert copied.reused_bytes > 0
    assert copied.root_hash == root_hash_of(disk, Unwatched())
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
