"""The calling end of a tunnel: a unix socket through which local programs each reach the peer."""

from __future__ import annotations

import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import structlog

from vmferry.errors import TunnelRefused, VmferryError
from vmferry.model.fleet import host_port
from vmferry.tunnel.connection import Ending, TunnelConnection, TunnelTimeouts
from vmferry.tunnel.handshake import request
from vmferry.tunnel.listening import MOST, Listening
from vmferry.tunnel.server import Told, unheard
from vmferry.tunnel.wire import tune, unpaced

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TunnelPeer:
    """Address of the other host's tunnel server, and the ticket that it issued."""

    host: str
    port: int
    ticket: str = field(repr=False)
    named: str | None = None  # in its certificate, where that is not the host

    @property
    def shown(self) -> str:
        return host_port(self.host, self.port)


class TunnelClient:
    """Listens on a unix socket that only its owner can use; each connection to it becomes one to the peer.

    A program whose connection the peer refuses sees its socket end; `told` is called with the reason, in the
    connection's own thread. `context` has to bring a certificate and to check the peer's.
    """

    def __init__(
        self,
        at: Path,
        peer: TunnelPeer,
        context: ssl.SSLContext,
        told: Told = unheard,
        patience: TunnelTimeouts | None = None,
        *,
        slow: bool | None = None,
    ) -> None:
        """Bind the socket; it listens when this returns.

        `slow`: the link carries 1 GBit/s or less (True), more (False), or it is unknown (None), as in TunnelServer.
        Raises ValueError for a context that would trust any peer, OSError.
        """
        if context.verify_mode is not ssl.CERT_REQUIRED or context.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise ValueError("a tunnel needs TLS 1.3 and checks the peer's certificate")
        self.at = at
        self._peer, self._context, self._told = peer, context, told
        self._patience = patience or TunnelTimeouts()
        self._slow = slow
        self._listening = Listening(_private(at), self._serve, MOST)

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._listening)

    def close(self) -> None:
        """Cut all connections, wait until they are gone, and remove the socket."""
        self._listening.stop()
        self.at.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, local: socket.socket, connection: TunnelConnection) -> None:
        peer = self._peer.shown
        try:
            link, peer_quiet_s = self._call(connection)
            connection.carry(local, link, self._patience.quiet_s, peer_quiet_s, slow=self._slow)
        except (OSError, VmferryError) as error:
            connection.cut(error if isinstance(error, VmferryError) else TunnelRefused(peer=peer, reason=str(error)))
        reason = str(connection.error) if connection.error else None
        log.info("a tunnel has ended", peer=peer, whole=reason is None, reason=reason)
        self._told(Ending(self._peer.ticket, peer, connection.sent, connection.received, connection.error))

    def _call(self, connection: TunnelConnection) -> tuple[ssl.SSLSocket, float]:
        """Connect to the peer and show the ticket. Return the link, and the peer's limit of silence in seconds.

        Raises TunnelRefused, OSError, and the error with which the connection was cut meanwhile.
        """
        peer, patience = self._peer, self._patience
        deadline = time.monotonic() + patience.hello_s
        plain = socket.create_connection((peer.host, peer.port), timeout=patience.hello_s)
        connection.hold(plain)
        tune(plain, patience.quiet_s)
        if self._slow is False:
            unpaced(plain)
        name = peer.named or peer.host
        link = self._context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=name)
        connection.hold(link)
        link.settimeout(max(0.01, deadline - time.monotonic()))
        link.do_handshake()
        return link, request(link, peer.shown, peer.ticket, patience.quiet_s, deadline)


def _private(at: Path) -> socket.socket:
    """Return a listening unix socket of mode 0600 from the first moment: bind() takes the mode of the descriptor.

    A socket that a killed process left is replaced; anything else at that path stays. Raises OSError.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        _clear(at)
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(at))
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


def _clear(at: Path) -> None:
    """Remove a socket on which nobody listens; probed by a datagram, since a connection would use up a ticket."""
    if not at.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(at))
        except ConnectionRefusedError:
            at.unlink(missing_ok=True)
        except OSError:  # of another type than ours, EPROTOTYPE: somebody is there
            return
