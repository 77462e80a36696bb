"""Tunnels for tests: two hosts on loopback, with an authority of their own, and programs at both ends."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Thread

from vmferry.tunnel import Ending, Tickets, TunnelClient, TunnelPeer, TunnelServer, TunnelTimeouts
from vmferry.tunnel.handshake import request

ANSWER_S = 30.0
QUICK = TunnelTimeouts(quiet_s=1.0, hello_s=1.0)


def context(keys: Path, side: str, *, known: bool = True) -> ssl.SSLContext:
    """TLS for the `server` or the `client` of an authority; not `known`: it shows no certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(keys / "ca-cert.pem")
    if known:
        made.load_cert_chain(keys / f"{side}-cert.pem", keys / f"{side}-key.pem")
    return made


class Pair:
    """A server, a client that has a ticket of it, and what both told of endings."""

    def __init__(
        self,
        folder: Path,
        keys: Path,
        *,
        uses: int | None = None,
        patience: TunnelTimeouts | None = None,
        slow: bool | None = None,
    ) -> None:
        self.there, self.here = folder / "there", folder / "here"
        self.tickets = Tickets()
        self.ticket = self.tickets.issue(self.there, 3600, uses)
        self.endings: Queue[Ending] = Queue()
        self.at_server: Queue[Ending] = Queue()
        self.server = TunnelServer(
            ("127.0.0.1", 0), context(keys, "server"), self.tickets, self.at_server.put, patience, slow=slow
        )
        self.peer = TunnelPeer("127.0.0.1", self.server.port, self.ticket)
        self.client = TunnelClient(self.here, self.peer, context(keys, "client"), self.endings.put, patience, slow=slow)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.there))
        self.listener.listen(64)
        self.listener.settimeout(ANSWER_S)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A program here, and the one that it reaches there."""
        near = call(self.here)
        far, _ = self.listener.accept()
        far.settimeout(ANSWER_S)
        return near, far

    def ended(self) -> Ending:
        """The next ending that the client tells of."""
        return self.endings.get(timeout=ANSWER_S)

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self.listener.close()


@contextmanager
def pair(
    folder: Path,
    keys: Path,
    *,
    uses: int | None = None,
    patience: TunnelTimeouts | None = None,
    slow: bool | None = None,
) -> Iterator[Pair]:
    made = Pair(folder, keys, uses=uses, patience=patience, slow=slow)
    try:
        yield made
    finally:
        made.close()


def call(at: Path) -> socket.socket:
    """Connect to a unix socket; nothing waits for ever."""
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(ANSWER_S)
    caller.connect(str(at))
    return caller


def read_all(end: socket.socket) -> bytes:
    """All until its end of file."""
    got = bytearray()
    while more := end.recv(1 << 20):
        got += more
    return bytes(got)


@contextmanager
def sending(end: socket.socket, content: bytes) -> Iterator[None]:
    """Send all of it in the background, then say that there is no more; whoever does not read it gets an error."""

    def send() -> None:
        end.sendall(content)
        end.shutdown(socket.SHUT_WR)

    thread = Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(ANSWER_S)
    assert not thread.is_alive(), "nobody took what was sent"


def stranger(pair: Pair, keys: Path, *, known: bool = True) -> ssl.SSLSocket:
    """A caller of the server that is no tunnel: TLS, and nothing said yet."""
    plain = socket.create_connection((pair.peer.host, pair.peer.port), timeout=ANSWER_S)
    return context(keys, "client", known=known).wrap_socket(plain, server_hostname=pair.peer.host)


def admitted(pair: Pair, keys: Path, quiet_s: float = 30.0) -> tuple[ssl.SSLSocket, socket.socket]:
    """A caller that has shown its ticket and can say what it likes, and the program that it reaches."""
    caller = stranger(pair, keys)
    request(caller, "the server", pair.ticket, quiet_s, time.monotonic() + ANSWER_S)
    caller.settimeout(ANSWER_S)
    far, _ = pair.listener.accept()
    far.settimeout(ANSWER_S)
    return caller, far


@contextmanager
def tunnel_to(there: Path, here: Path, keys: Path) -> Iterator[Callable[[], None]]:
    """A tunnel from the socket `here` to a server's socket; gives what withdraws its ticket."""
    tickets = Tickets()
    ticket = tickets.issue(there, 3600, None)
    with TunnelServer(("127.0.0.1", 0), context(keys, "server"), tickets) as server:
        peer = TunnelPeer("127.0.0.1", server.port, ticket)
        with TunnelClient(here, peer, context(keys, "client")):
            yield lambda: tickets.withdraw(ticket)
