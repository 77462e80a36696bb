"""Tunnels over a link that is slow, or is cut without a word, between two networks on this machine."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.nbd_servers import certificates, needs
from tests.support.shaped_links import Link, shaped
from tests.support.tunnel_ends import Ends, tunnel_between
from tests.support.tunnels import call, read_all, sending

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@pytest.fixture
def link() -> Iterator[Link]:
    needs("unshare", "nsenter", "ip", "tc")
    if os.getuid() != 0:
        pytest.skip("needs root for namespaces")
    with shaped(100) as made:
        yield made


@contextmanager
def connected(link: Link, folder: Path, quiet_s: float = 30.0) -> Iterator[tuple[Ends, socket.socket, socket.socket]]:
    """A tunnel over the link, and a program at each of its ends."""
    keys = certificates(folder / "keys")
    here, there = folder / "here", folder / "there"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(there))
        listener.listen()
        listener.settimeout(30)
        with tunnel_between(link, here, there, keys, quiet_s) as ends, call(here) as near, listener.accept()[0] as far:
            far.settimeout(60)
            yield ends, near, far


def test_text_passes_a_slow_link_in_a_fraction_of_its_bytes(tmp_path: Path, link: Link) -> None:
    text = b"".join(b"line %d: one and the same sentence, or nearly\n" % number for number in range(1_000_000))
    with connected(link, tmp_path) as (ends, near, far):
        with sending(near, text):
            assert read_all(far) == text
        far.close()
        ending = ends.ending()
    assert (ending["whole"], ending["plain"]) == (True, len(text))
    assert ending["wire"] < len(text) / 2


def test_noise_passes_a_slow_link_as_it_is(tmp_path: Path, link: Link) -> None:
    noise = random.Random(7).randbytes(24 * MIB)
    with connected(link, tmp_path) as (ends, near, far):
        with sending(near, noise):
            assert read_all(far) == noise
        far.close()
        assert len(noise) < ends.ending()["wire"] < len(noise) * 1.001


def test_both_ends_notice_that_the_link_is_gone(tmp_path: Path, link: Link) -> None:
    """The far end has nothing to say, the near one much: without a word of the network each has to find out itself."""
    with connected(link, tmp_path, quiet_s=2.0) as (ends, near, far):
        near.sendall(b"hello")
        assert far.recv(5) == b"hello"
        subprocess.run([*link.far, "ip", "link", "set", "far", "down"], check=True)
        with pytest.raises(OSError):
            near.sendall(bytes(256 * MIB))
        assert read_all(far) == b""
        ending = ends.ending()
    assert not ending["whole"]
    assert "nothing was heard of the other host for 2 s" in ending["reason"]
