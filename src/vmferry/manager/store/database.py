"""A database of records: SQLite here, or PostgreSQL that several managers share. Every block is one transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy import event

from vmferry.errors import StoreAway
from vmferry.manager.store.tables import metadata

Connections: TypeAlias = sa.Engine
READING: Final = "vmferry_reading"
TURN: Final = 0x766D6665727279
"""The advisory lock below which managers take slots and make tables, one after the other."""
IDLE_IN_TRANSACTION_S = 5
"""A manager that is frozen inside a transaction holds its locks no longer than this."""
FEW: Final = 3
POSTGRES: Final[Mapping[str, object]] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "vmferry",
    "options": f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S}s -c synchronous_commit=on",
}
"""What libpq is told: a server that is cut off is given up after about ten seconds, and a commit is durable
whatever the server's default: with synchronous_commit off a crash of it was seen to forget the end of a job."""
_ENDED_BY_SERVER = "25P03"
"""idle_in_transaction_session_timeout: psycopg counts it among the internal errors."""


SUBSECOND_SQLITE: Final = (3, 42)
"""The first version that knows unixepoch('subsec')."""


def know_subseconds() -> None:
    """Give each SQLite connection of this process the unixepoch('subsec'), in seconds, that DBOS asks for.

    It does so from Python 3.12 on. An older SQLite (Debian 12, RHEL 9) takes 'subsec' for a time that makes no sense
    and returns NULL: then DBOS cannot even start. Seen with Python 3.12.1, SQLite 3.40.1 and DBOS 3.4.0.
    """
    if sqlite3.sqlite_version_info < SUBSECOND_SQLITE:
        event.listen(sa.Engine, "connect", _add_subseconds)  # a second time it changes nothing


def _add_subseconds(connection: object, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.create_function("unixepoch", 1, lambda _: round(time.time(), 3))


class Database:
    """Connections to one database, with the tables made. Raises StoreAway where it cannot be reached."""

    def __init__(self, url: str, connections: int | None = None) -> None:
        """`connections`: at most so many at a time to PostgreSQL, for what seldom needs one."""
        few = {} if connections is None else {"pool_size": connections, "max_overflow": 0}
        self.engine = make_engine(url, **few)
        self.shared = self.engine.dialect.name == "postgresql"
        """Do other processes write to it too?"""
        if self.shared:
            with self.writing() as connection:
                self.take_turn(connection)  # two that make the same table at once would fail
                metadata.create_all(connection)
        else:
            event.listen(self.engine, "connect", _set_up_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
            metadata.create_all(self.engine)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with _reached(), self.engine.connect().execution_options(**{READING: True}) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Begin a transaction for writing, durable when the block has ended; perhaps also after StoreAway."""
        with _reached(), self.engine.begin() as connection:
            yield connection

    def take_turn(self, connection: sa.Connection) -> None:
        """Have the turn among all managers until the transaction ends; SQLite has one writer anyway."""
        if self.shared:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TURN)))


def make_engine(url: str, **how: Any) -> sa.Engine:
    """Return an SQLAlchemy engine set up as for all our connections. PostgreSQL's URLs may leave the driver out."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "postgresql":
        return sa.create_engine(parsed)
    return sa.create_engine(
        parsed.set(drivername="postgresql+psycopg"), **{"pool_pre_ping": True, "connect_args": dict(POSTGRES)} | how
    )


@contextmanager
def _reached() -> Iterator[None]:
    """Raise StoreAway for all errors that a database being away, or ending the session, can cause."""
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise StoreAway(reason="all connections are busy") from error
    except sa.exc.DBAPIError as error:
        if is_away(error):
            raise StoreAway(reason=str(error.orig).strip().partition("\n")[0]) from error
        raise


def is_away(error: sa.exc.DBAPIError) -> bool:
    broken = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) or error.connection_invalidated
    return broken or getattr(error.orig, "sqlstate", None) == _ENDED_BY_SERVER


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin late and let two writers deadlock
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get(READING)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
