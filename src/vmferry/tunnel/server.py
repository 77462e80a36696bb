"""The called end of a tunnel: it checks tickets, and connects each caller to the socket that its ticket names."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from threading import BoundedSemaphore
from typing import Self

import structlog

from vmferry.errors import TunnelRefused, VmferryError
from vmferry.model.fleet import host_port
from vmferry.tunnel.connection import Ending, TunnelConnection, TunnelTimeouts
from vmferry.tunnel.handshake import Answer, Handshake, accept, reply
from vmferry.tunnel.listening import MOST, Listening
from vmferry.tunnel.tickets import Tickets
from vmferry.tunnel.wire import tune, unpaced

STRANGERS = 64
"""Callers at once that have not shown a ticket yet."""

Told = Callable[[Ending], None]
log = structlog.get_logger()


def unheard(ending: Ending) -> None:
    """Ignore the ending of a connection."""


class TunnelServer:
    """Listens on TCP for peers of our own authority, and carries bytes to the unix socket that their ticket names.

    `context` has to demand certificates and TLS 1.3. `told` is called, in the connection's own thread, when a
    connection that was admitted has ended.
    """

    def __init__(
        self,
        at: tuple[str, int],
        context: ssl.SSLContext,
        tickets: Tickets,
        told: Told = unheard,
        patience: TunnelTimeouts | None = None,
        *,
        slow: bool | None = None,
    ) -> None:
        """Bind the port; it listens when this returns. `slow`: the link carries 1 GBit/s or less; None: unknown.

        On a faster link (False) nothing is compressed: what holds it up is a slow reader; see also wire.unpaced. On a
        slow link (True) frames are compressed from the first byte on. None measures: see compression.py.

        Raises ValueError for a context that would admit any caller, OSError.
        """
        if context.verify_mode is not ssl.CERT_REQUIRED or context.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise ValueError("a tunnel needs TLS 1.3 and a certificate of each caller")
        self._context, self._tickets, self._told = context, tickets, told
        self._patience = patience or TunnelTimeouts()
        self._slow = slow
        self._strangers = BoundedSemaphore(STRANGERS)
        family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
        listener = socket.create_server(at, family=family, backlog=STRANGERS)
        self.port: int = listener.getsockname()[1]
        self._listening = Listening(listener, self._serve, MOST)

    def __len__(self) -> int:
        """Return the number of connections, with those that have not shown a ticket yet."""
        return len(self._listening)

    def close(self) -> None:
        """Cut all connections, and wait until they are gone."""
        self._listening.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, caller: socket.socket, connection: TunnelConnection) -> None:
        """Admit a caller and carry its bytes; a caller that is refused costs a line in the log, and nothing else."""
        if not self._strangers.acquire(blocking=False):
            log.warning("a tunnel's caller was sent away: too many have not said who they are", most=STRANGERS)
            return
        deadline = time.monotonic() + self._patience.hello_s
        try:
            peer = _name(caller)
            link = self._secure(caller, connection, deadline)
            hello = accept(link, peer, self._patience.quiet_s, deadline)
        except (OSError, VmferryError) as error:
            log.warning("a tunnel's caller was refused", reason=str(error))
            return
        finally:
            self._strangers.release()
        self._admit(link, hello, peer, connection)

    def _secure(self, caller: socket.socket, connection: TunnelConnection, deadline: float) -> ssl.SSLSocket:
        tune(caller, self._patience.quiet_s)
        if self._slow is False:
            unpaced(caller)
        link = self._context.wrap_socket(caller, server_side=True, do_handshake_on_connect=False)
        connection.hold(link)
        link.settimeout(max(0.01, deadline - time.monotonic()))
        link.do_handshake()
        return link

    def _admit(self, link: ssl.SSLSocket, hello: Handshake, peer: str, connection: TunnelConnection) -> None:
        """Check the ticket, connect to its socket and carry bytes; a ticket that leads nowhere is not used up."""
        path, used = self._tickets.admit(hello.ticket, connection), False
        try:
            if path is None:
                self._refuse(link, Answer.UNKNOWN, peer)
                return
            local = self._reach(path, connection)
            if local is None:
                self._refuse(link, Answer.ABSENT, peer)
                return
            used = True
            reply(link, Answer.WELCOME, self._patience.quiet_s)
            log.info("a tunnel is open", peer=peer, path=str(path))
            connection.carry(local, link, self._patience.quiet_s, hello.quiet_s, slow=self._slow)
        except (OSError, VmferryError) as error:
            connection.cut(TunnelRefused(peer=peer, reason=str(error)))
        finally:
            self._tickets.ended(hello.ticket, connection, used=used)
        if used:
            self._end(Ending(hello.ticket, peer, connection.sent, connection.received, connection.error))

    def _reach(self, path: Path, connection: TunnelConnection) -> socket.socket | None:
        """Connect to the ticket's unix socket. Return None if nobody listens there.

        Raises the error with which the connection was cut meanwhile.
        """
        local = socket.socket(socket.AF_UNIX)
        connection.hold(local)
        local.settimeout(self._patience.hello_s)
        try:
            local.connect(str(path))
        except OSError as error:
            log.warning("a tunnel leads nowhere", path=str(path), reason=str(error))
            return None
        return local

    def _refuse(self, link: ssl.SSLSocket, answer: Answer, peer: str) -> None:
        log.warning("a tunnel's caller was refused", peer=peer, answer=answer.name)
        reply(link, answer, self._patience.quiet_s)

    def _end(self, ending: Ending) -> None:
        reason = str(ending.error) if ending.error else None
        log.info("a tunnel has ended", peer=ending.peer, whole=ending.whole, reason=reason)
        self._told(ending)


def _name(caller: socket.socket) -> str:
    """Return the caller's address, HOST:PORT. Raises OSError when it has hung up already."""
    host, port, *_ = caller.getpeername()
    return host_port(host, port)
