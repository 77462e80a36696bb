"""The agent's listening side: a certificate before a byte of HTTP is read, and a deadline for each request.

uvicorn has a time limit for idle connections only: a client that sends its request byte by byte would keep one for
ever, and asyncio gives a TLS handshake a minute.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vmferry.agent.metrics import REFUSED
from vmferry.authority import peer_of
from vmferry.hosts.remote.client import SOCKET_OPTIONS

PEER = "peer"
HANDSHAKE_S = 5.0
SHUTDOWN_S = 1.0
REQUEST_S = 15.0
"""From the first byte of a request, or the connection, to the last of the request."""
UNREAD_S = 60.0
"""A client that does not read its answer for so long is cut off."""
MOST_CONNECTIONS = 512
IDLE_S = 60


class Loop(asyncio.SelectorEventLoop):
    """asyncio's event loop with a short limit for TLS handshakes, which uvicorn offers no way to set."""

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        if kwargs.get("ssl") is not None:
            kwargs["ssl_handshake_timeout"] = HANDSHAKE_S
            kwargs["ssl_shutdown_timeout"] = SHUTDOWN_S
        return await super().create_server(*args, **kwargs)


def make_loop() -> asyncio.AbstractEventLoop:
    return Loop()


class AgentConnection(H11Protocol):
    """One HTTP connection with deadlines; puts the peer of its certificate into the state of its requests."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._cut_off("connections")
            return
        for option in SOCKET_OPTIONS:
            transport.get_extra_info("socket").setsockopt(*option)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.app_state = self.app_state | {PEER: peer_of(tls.getpeercert()) if tls else None}
        self._await_request()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._waits():
            self._await_request()
        super().data_received(data)
        if not self._waits():
            self._set_deadline(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self._waits() and self.conn.trailing_data[0]:
            self._await_request()  # the beginning of another request is here already

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self._cut_off, "unread")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _waits(self) -> bool:
        """Is a request, or the rest of one, still to come?"""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _await_request(self) -> None:
        self._set_deadline(self.loop.call_later(REQUEST_S, self._cut_off, "slow"))

    def _set_deadline(self, deadline: asyncio.TimerHandle | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = deadline

    def _cut_off(self, why: str) -> None:
        REFUSED.labels(why).inc()
        self.transport.abort()


def configured(app: Any, context: ssl.SSLContext | None) -> uvicorn.Config:
    """Return uvicorn's configuration: TLS with this context, or without one plain HTTP for loopback."""
    config = uvicorn.Config(
        app,
        http=AgentConnection if context else "h11",
        ws="none",
        loop=f"{__name__}:make_loop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=5,
    )
    config.load()
    config.ssl = context
    return config


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(256)
    except OSError:
        listener.close()
        raise
    return listener
