"""Images that one host serves to another: what becomes of a copy whose server goes away."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nbd
import pytest
from tests.support.nbd_servers import answers, certificates, needs, running, until
from tests.support.realm import Realm

from vmferry.agent.tunnels import TunnelTransport
from vmferry.authority import Role
from vmferry.errors import HostUnreachable
from vmferry.hosts.fence import Fence
from vmferry.hosts.libvirt import nbd_exports as exports_module
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.hosts.libvirt.driver import LibvirtHost
from vmferry.hosts.libvirt.nbd_exports import ExportAddress, Exports
from vmferry.hosts.libvirt.network_cards import GBIT_S
from vmferry.model import FencingToken
from vmferry.transfer import Copied, Place, Throttle, Transfer, Unwatched, Watch
from vmferry.transfer.endpoints.nbd import NbdLink, nbd_link

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
    exports = Exports(ExportAddress("127.0.0.1", certificates(tmp_path / "tls")))
    try:
        served = exports.serve("abcd2345", image, "host1")
        host = LibvirtHost(
            LibvirtConnection("test:///default"), Fence(tmp_path / "state"), FencingToken("abcd2345", 1), exports
        )
        transfer = Transfer(served, Place(str(tmp_path / "copy")), tmp_path / "bookmarks")
        with pytest.raises(HostUnreachable, match="host1") as away:
            host.copy(transfer, KillsTheServer(exports))
        print(away.value)
        with pytest.raises(HostUnreachable, match="host1") as away:
            host.copy(transfer, KillsTheServer(exports))
        print(away.value)
    finally:
        exports.close()


def test_over_a_slow_link_an_image_is_read_through_a_tunnel_and_the_rest_of_it_directly(tmp_path: Path) -> None:
    needs("qemu-nbd")
    image = tmp_path / "image"
    image.write_bytes(b"content." * (SIZE // 8))
    tls, _ = Realm(tmp_path / "realm").certificate("host1", Role.AGENT)
    run = Path(tempfile.mkdtemp(prefix="vmferry-test-"))  # a socket's path is short
    crossing = TunnelTransport("test:///default", tls, run)
    ways = {speed: Exports(ExportAddress("127.0.0.1", tls.path, speed), crossing.expose) for speed in (GBIT_S, 10**10)}
    try:
        slow, fast = (exports.serve("abcd2345", image, "host1") for exports in ways.values())
        assert slow.through
        assert slow.through not in repr(slow)
        assert fast.through == ""
        assert slow.shown == fast.shown

        def copied(served: Place, watch: Watch) -> Copied:
            host = LibvirtHost(
                LibvirtConnection("test:///default"), Fence(tmp_path / "state"), ours, ways[10**10], crossing
            )
            return host.copy(Transfer(served, Place(str(tmp_path / "copy")), tmp_path / "bookmarks"), watch)

        ours = FencingToken("abcd2345", 1)
        with pytest.raises(HostUnreachable, match="host1"):
            copied(slow, KillsTheServer(ways[GBIT_S]))
        again = ways[GBIT_S].serve("abcd2345", image, "host1")
        with pytest.raises(HostUnreachable, match="host1"):
            copied(again, KillsTheServer(ways[GBIT_S]))
        rest = copied(fast, Unwatched())
        assert rest.copied_bytes + rest.reused_bytes == SIZE
        assert (tmp_path / "copy").read_bytes() == image.read_bytes()
        third = ways[GBIT_S].serve("abcd2345", image, "host1")
        assert copied(third, Unwatched()).reused_bytes == SIZE
        crossing.end("abcd2345")
        with pytest.raises(HostUnreachable, match="host1"):
            copied(third, Unwatched())
        assert [*(run / "images").iterdir()] == []
    finally:
        for exports in ways.values():
            exports.close()
        crossing.close()
        shutil.rmtree(run)


@pytest.mark.parametrize(("speed", "paced"), [(10**10, False), (None, True)])
def test_an_image_is_served_over_a_fast_link_without_pacing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, speed: int | None, paced: bool
) -> None:
    """Of a link of which nobody tells how fast it is, the host's own choice stays."""
    needs("qemu-nbd")
    changed: list[int] = []
    monkeypatch.setattr(exports_module, "unpaced", lambda listening: changed.append(listening.fileno()))
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    exports = Exports(ExportAddress("127.0.0.1", certificates(tmp_path / "tls"), speed))
    try:
        exports.serve("abcd2345", image, "host1")
    finally:
        exports.close()
    assert bool(changed) is not paced


@pytest.mark.parametrize("ask", [NbdLink.flush, lambda link: link.read(0, memoryview(bytearray(4096)))])
def test_a_connection_that_broke_between_two_requests_says_so(tmp_path: Path, ask: Callable[[NbdLink], None]) -> None:
    """libnbd's own word for the next request is EINVAL, which a server may say too."""
    needs("qemu-nbd")
    image, at = tmp_path / "image", tmp_path / "nbd"
    image.write_bytes(bytes(SIZE))
    with running("qemu-nbd", "-f", "raw", "-k", str(at), image, log=tmp_path / "log") as server:
        until(lambda: at.exists() and answers(at), "qemu-nbd")
        handles: list[nbd.NBD] = []

        def connect(handle: nbd.NBD) -> None:
            handles.append(handle)
            handle.aio_connect_unix(str(at))

        with nbd_link(connect, 1) as link:
            server.kill()
            server.wait()
            with suppress(nbd.Error):
                while not handles[0].aio_is_dead():
                    handles[0].poll(1000)
            with pytest.raises(OSError, match="invalid state") as error:
                ask(link)
            assert error.value.errno == errno.ECONNRESET
