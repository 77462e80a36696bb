"""Images that one host serves to another: what becomes of a copy whose server goes away."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.block.servers import certificates, needs

from vmferry.errors import HostUnreachable
from vmferry.fence import Fence
from vmferry.hosts.exports import Exports, Front
from vmferry.hosts.libvirt import LibvirtHost
from vmferry.hosts.link import Link
from vmferry.model import Token
from vmferry.transfer import Place, Throttle, Transfer

SIZE = 24 << 20


class KillsTheServer:
    """A watch; once something has moved the source's host dies."""

    throttle = Throttle(8 << 20)

    def __init__(self, exports: Exports) -> None:
        self._exports = exports
        self.killed = False

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        if done_bytes and not self.killed:
            self.killed = True
            self._exports.end("abcd2345")

    def check(self) -> None:
        """Nobody cancels."""


def test_a_server_that_is_killed_while_it_is_read_is_a_host_that_is_away(tmp_path: Path) -> None:
    needs("qemu-nbd")
    image = tmp_path / "image"
    image.write_bytes(b"content." * (SIZE // 8))
    exports = Exports(Front("127.0.0.1", certificates(tmp_path / "tls")))
    try:
        served = exports.serve("abcd2345", image, "host1")
        host = LibvirtHost(Link("test:///default"), Fence(tmp_path / "state"), Token("abcd2345", 1), exports)
        transfer = Transfer(served, Place(str(tmp_path / "copy")), tmp_path / "bookmarks")
        with pytest.raises(HostUnreachable, match="host1") as away:
            host.copy(transfer, KillsTheServer(exports))
        print(away.value)
        with pytest.raises(HostUnreachable, match="host1") as away:
            host.copy(transfer, KillsTheServer(exports))
        print(away.value)
    finally:
        exports.close()
