"""A manager's lock in PostgreSQL: a manager that holds it is alive, one whose lock is free is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
import structlog

from vmferry.manager.store.database import POSTGRES, make_engine

log = structlog.get_logger()

LEASE_S = 10.0
"""A manager that is silent for so long has lost its lock: it is frozen, or cut off."""


class Leases:
    """Holds the lock of one manager on a connection of its own.

    PostgreSQL frees it when the connection breaks, and ends the connection (idle_session_timeout) when nothing
    came through it for the lease: the kernel of a frozen process still answers TCP's keepalives.
    """

    def __init__(self, url: str, manager: str) -> None:
        silent_ms = int(LEASE_S * 1000)
        patience = {"tcp_user_timeout": silent_ms, "connect_timeout": max(2, int(LEASE_S / 2))}
        self._engine = make_engine(
            url, poolclass=sa.pool.NullPool, pool_pre_ping=False, connect_args=dict(POSTGRES) | patience
        )
        self._lease_ms = silent_ms
        self._key = key_of(manager)
        self._held: sa.Connection | None = None
        self._terms = 0
        self._refused = False

    def hold(self) -> int:
        """Take the lock, or keep it; call at least four times in LEASE_S.

        Returns how often the lock has been taken, this time included; 0 while it is not held.
        """
        if self._held is not None and self._still(self._held):
            return self._terms
        self._drop()
        self._held = self._take()
        if self._held is None:
            return 0
        self._terms += 1
        return self._terms

    def absent(self, managers: Collection[str]) -> set[str]:
        """Return those of the managers whose lock is free; none, while this one's own is not held."""
        if self._held is None or not managers:
            return set()
        try:
            held = set(self._held.execute(_HELD).scalars())
        except sa.exc.DBAPIError:
            self._drop()
            return set()
        return {manager for manager in managers if key_of(manager) not in held}

    def release(self) -> None:
        self._drop()
        self._engine.dispose()

    def _still(self, connection: sa.Connection) -> bool:
        try:
            connection.execute(sa.text("SELECT 1"))
        except sa.exc.SQLAlchemyError:  # also what it says of a connection that it has seen breaking before
            return False
        return True

    def _take(self) -> sa.Connection | None:
        try:
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        except sa.exc.DBAPIError as away:
            log.debug("the lock cannot be asked for", reason=str(away.orig))
            return None
        try:
            connection.execute(sa.text(f"SET idle_session_timeout = {self._lease_ms}"))
            if connection.execute(sa.select(sa.func.pg_try_advisory_lock(self._key))).scalar_one():
                self._refused = False
                return connection
            if not self._refused:
                log.warning("another session holds this manager's lock: nothing is started here until it ends")
                self._refused = True
        except sa.exc.DBAPIError as away:
            log.debug("the lock cannot be asked for", reason=str(away.orig))
        _close(connection)
        return None

    def _drop(self) -> None:
        if self._held is not None:
            _close(self._held)
            self._held = None


def key_of(manager: str) -> int:
    """Return the key of the advisory lock that stands for a manager."""
    digest = hashlib.blake2b(f"vmferry manager {manager}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def is_gone(connection: sa.Connection, manager: str) -> bool:
    """Return True if the manager's lock is free. It then stays so, and the manager away, until the transaction ends."""
    free: Any = connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(key_of(manager)))).scalar_one()
    return bool(free)


def _close(connection: sa.Connection) -> None:
    with suppress(sa.exc.SQLAlchemyError):
        connection.close()


_HELD = sa.text(
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
