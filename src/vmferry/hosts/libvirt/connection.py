"""The connection to one libvirtd: opened when needed, opened again when libvirtd was away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlsplit

import libvirt
import libvirt_qemu

from vmferry.errors import (
    BadConnectUri,
    HostDenied,
    HostNotFound,
    HostRefused,
    HostUnreachable,
    NoQemuDriver,
    VmHeld,
    WayBroke,
)

T = TypeVar("T")

_AWAY = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_RPC,
    }
)
_BROKEN = ("client socket is closed", "End of file while reading data", "Cannot recv data")
"""Parts of libvirt's messages on a broken connection: ours to it, or its own to another libvirtd."""
_HELD = "state change lock"
"""The lock of a VM, which libvirt could not have within half a minute."""
_PATHS = frozenset({"/system", "/session", "/embed"})
_DENIED = frozenset({libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_AUTH_UNAVAILABLE})
_DENIALS = ("Permission denied", "access denied", "authentication failed", "Host key verification failed")
_UNRESOLVED = ("Name or service not known", "Unable to resolve", "Could not resolve", "name resolution")
_GROUP = "use sudo, or become a member of the group libvirt (`sudo usermod -aG libvirt $USER`, then log in anew)"
_KEY = "see that `virsh -c` with the same URI lets you in without asking for anything (a key, a known host)"
KEEPALIVE_S = 5
KEEPALIVE_TRIES = 6

_loop_lock = threading.Lock()
_loop_runs = False


def _run_event_loop() -> None:
    """Start libvirt's own event loop, once for the process: keepalive and events need it before the first open."""
    global _loop_runs
    with _loop_lock:
        if _loop_runs:
            return
        libvirt.virEventRegisterDefaultImpl()
        libvirt.registerErrorHandler(lambda *_: None, None)  # errors come as exceptions, not on stderr
        threading.Thread(target=_turn, name="libvirt-events", daemon=True).start()
        _loop_runs = True


def _turn() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


class LibvirtConnection:
    """One libvirtd by its URI; shared by all jobs of a process."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self.redefining = threading.Lock()
        """Held from reading a definition to writing it back: of two changes at once one would be lost."""
        self._conn: libvirt.virConnect | None = None
        self._stops: dict[str, float] = {}

    def call(self, action: str, act: Callable[[libvirt.virConnect], T]) -> T:
        """Call `act` with the shared connection, and return its result.

        Raises HostUnreachable or HostRefused, never libvirtError; `action` says in these what was refused.
        """
        conn = self._open()
        try:
            return act(conn)
        except libvirt.libvirtError as error:
            if away := self._away(conn, error):
                self._drop(conn)
            raise self._failed(action, error, away=away) from error

    def call_long(self, action: str, act: Callable[[libvirt.virConnect], T]) -> T:
        """Call `act` with a connection of its own, for what takes seconds. Raises HostUnreachable or HostRefused.

        libvirt's client lets the thread that waits on a connection also send the calls of others there, and may miss
        the signal that there are some: seen in 9.0, calls that waited for the end of a save.
        """
        try:
            conn = self._connected()
        except libvirt.libvirtError as error:
            raise self._failed(action, error, away=True) from error
        try:
            return act(conn)
        except libvirt.libvirtError as error:
            raise self._failed(action, error, away=self._away(conn, error)) from error
        finally:
            with suppress(libvirt.libvirtError):
                conn.close()

    def stopped_at(self, uuid: str) -> float | None:
        """Return when QEMU last stopped the guest's CPUs, by its own clock (Unix time); None if that was not seen."""
        return self._stops.get(uuid)

    def stood_s(self, uuid: str) -> float:
        """Return the seconds since QEMU last stopped the guest's CPUs; 0 when that was not seen."""
        stopped = self.stopped_at(uuid)
        return max(0.0, time.time() - stopped) if stopped is not None else 0.0

    def forget_stop(self, uuid: str) -> None:
        self._stops.pop(uuid, None)

    def _open(self) -> libvirt.virConnect:
        with self._lock:
            if self._conn is not None and not _lives(self._conn):
                self._conn = None  # libvirtd was started anew meanwhile: nobody has to hear of that
            if self._conn is None:
                try:
                    conn = self._connected()
                    self._listen(conn)  # fails too where there is no QEMU behind the URI
                except libvirt.libvirtError as error:
                    raise unreachable(self.uri, error) from error
                self._conn = conn
            return self._conn

    def _connected(self) -> libvirt.virConnect:
        _run_event_loop()
        conn = libvirt.open(self.uri)
        conn.setKeepAlive(KEEPALIVE_S, KEEPALIVE_TRIES)
        return conn

    def _failed(self, action: str, error: libvirt.libvirtError, *, away: bool) -> HostRefused | HostUnreachable:
        if away:
            return unreachable(self.uri, error)
        return refusal(error)(host=self.uri, action=action, reason=error.get_error_message())

    def _listen(self, conn: libvirt.virConnect) -> None:
        libvirt_qemu.qemuMonitorEventRegister(conn, None, "STOP", self._stop_seen, None, 0)

    def _stop_seen(
        self,
        _conn: object,
        domain: libvirt.virDomain,
        _event: str,
        seconds: int,
        micros: int,
        _details: str,
        _o: object,
    ) -> None:
        self._stops[domain.UUIDString()] = seconds + micros / 1e6

    def _away(self, conn: libvirt.virConnect, error: libvirt.libvirtError) -> bool:
        if error.get_error_code() in _AWAY or _is_broken(error):
            # a system error may be a domain's own (a file that is missing): the connection tells
            try:
                return not conn.isAlive() or not _answers(conn)
            except libvirt.libvirtError:
                return True
        return False

    def _drop(self, conn: libvirt.virConnect) -> None:
        with self._lock:
            if self._conn is conn:
                self._conn = None


def refusal(error: libvirt.libvirtError) -> type[HostRefused]:
    """Return the class of error for a call that a libvirtd which answers has refused."""
    if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT and _HELD in error.get_error_message():
        return VmHeld
    return WayBroke if _is_broken(error) else HostRefused


def unreachable(uri: str, error: libvirt.libvirtError) -> HostUnreachable:
    """Return the error for a connection that failed, its class as far as the URI and libvirt's words tell."""
    code, reason = error.get_error_code(), error.get_error_message()
    named = urlsplit(uri)
    if named.scheme.partition("+")[0] != "qemu" or named.path not in _PATHS or code == libvirt.VIR_ERR_INVALID_ARG:
        return BadConnectUri(host=uri, reason=reason)
    if code in _DENIED or any(said in reason for said in _DENIALS):
        return HostDenied(host=uri, reason=reason, cure=_KEY if named.hostname else _GROUP)
    if any(said in reason for said in _UNRESOLVED):
        return HostNotFound(host=uri, reason=reason)
    if code in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_NO_SUPPORT):
        return NoQemuDriver(host=uri, reason=reason)
    return HostUnreachable(host=uri, reason=reason)


def _is_broken(error: libvirt.libvirtError) -> bool:
    return any(said in error.get_error_message() for said in _BROKEN)


def _lives(conn: libvirt.virConnect) -> bool:
    """Is the connection alive, as far as this side has heard? Asks nobody."""
    try:
        return bool(conn.isAlive())
    except libvirt.libvirtError:
        return False


def _answers(conn: libvirt.virConnect) -> bool:
    try:
        conn.getLibVersion()
    except libvirt.libvirtError:
        return False
    return True


def until(done: Callable[[], bool], look_s: float = 0.05, each: Callable[[], None] | None = None) -> None:
    """Wait until `done` is true, polling every `look_s` seconds; `each` is called before each wait and may raise."""
    while not done():
        if each is not None:
            each()
        time.sleep(look_s)
