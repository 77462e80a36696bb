"""A listening socket that serves a bounded number of callers in parallel, until it is stopped."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread

import structlog

from vmferry.errors import TunnelCut
from vmferry.tunnel.connection import TunnelConnection
from vmferry.tunnel.sender import Waker

MOST = 512
"""Connections at once; each has two threads, three descriptors and a megabyte of buffers."""
_SCANT_S = 0.5

Serve = Callable[[socket.socket, TunnelConnection], None]
log = structlog.get_logger()


class Listening:
    """Calls serve(socket, connection) in a thread for each caller, and closes the connection afterwards."""

    def __init__(self, listener: socket.socket, serve: Serve, most: int = MOST) -> None:
        self._listener, self._serve, self._most = listener, serve, most
        self._lock = Lock()
        self._served: dict[TunnelConnection, Thread] = {}
        self._stopped = Event()
        self._bell = Waker()
        listener.setblocking(False)
        self._thread = Thread(target=self._accept, name="tunnel-listen", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of callers that are being served."""
        with self._lock:
            return len(self._served)

    def stop(self) -> None:
        """Accept no more callers, cut all connections, and wait until they are gone. Call it only once."""
        self._stopped.set()
        self._bell.ring()
        self._thread.join()
        self._listener.close()
        with self._lock:
            served = dict(self._served)
        for connection in served:
            connection.cut(TunnelCut(reason="this host stops its tunnels"))
        for thread in served.values():
            thread.join()
        self._bell.close()

    def _accept(self) -> None:
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        waiting.register(self._bell, select.POLLIN)
        while not self._stopped.is_set():
            waiting.poll()
            try:
                caller, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:  # no descriptors are left: they come back when others end
                log.warning("a tunnel's caller has to wait", reason=str(error))
                self._stopped.wait(_SCANT_S)
                continue
            self._take(caller)

    def _take(self, caller: socket.socket) -> None:
        if len(self) >= self._most:
            log.warning("a tunnel's caller was sent away: there are too many", most=self._most)
            caller.close()
            return
        try:
            connection = TunnelConnection()
        except OSError as error:
            log.warning("a tunnel's caller was sent away", reason=str(error))
            caller.close()
            return
        connection.hold(caller)
        thread = Thread(target=self._attend, args=(caller, connection), name="tunnel-in", daemon=True)
        with self._lock:
            self._served[connection] = thread
        thread.start()

    def _attend(self, caller: socket.socket, connection: TunnelConnection) -> None:
        try:
            self._serve(caller, connection)
        finally:
            connection.close()
            with self._lock, suppress(KeyError):
                del self._served[connection]
