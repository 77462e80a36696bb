"""The durable record of hosts, their certificates and storages. Every method is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
import structlog

from vmferry.errors import HostKnown, NoSuchHost, NoSuchStorage, StorageKnown
from vmferry.manager.store.database import FEW, Database
from vmferry.manager.store.jobs import now
from vmferry.manager.store.tables import metadata

log = structlog.get_logger()

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("address", sa.String, nullable=False),
    sa.Column("also", sa.JSON, nullable=False),  # further names that its certificates bear
    sa.Column("added", sa.String, nullable=False),
)

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.String(40), primary_key=True),  # in hexadecimal
    sa.Column("role", sa.String, nullable=False),
    sa.Column("name", sa.String(63), nullable=False, index=True),
    sa.Column("expires", sa.String, nullable=False),
    sa.Column("revoked", sa.String),
)

authorities = sa.Table(
    "authorities",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # 1: there is one
    sa.Column("fingerprint", sa.String(64), nullable=False),
)

storages = sa.Table(
    "storages",
    metadata,
    sa.Column("host", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("path", sa.String, nullable=False),
    sa.Column("uuid", sa.String(36), nullable=False, index=True),
    sa.Column("grade", sa.String, nullable=False),
)


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host that was added."""

    name: str
    address: str
    also: tuple[str, ...]
    """Other addresses under which other hosts reach it."""
    added: str
    revoked: bool
    """None of its certificates is good any more."""


@dataclass(frozen=True, slots=True)
class StorageRow:
    host: str
    name: str
    path: str
    uuid: str
    grade: str


class FleetStore:
    """Hosts, certificates and storages in a database."""

    def __init__(self, url: str) -> None:
        self._database = Database(url, connections=FEW)
        self._reading = self._database.reading
        self._writing = self._database.writing

    def close(self) -> None:
        self._database.close()

    # -- hosts

    def add(self, name: str, address: str, also: Sequence[str]) -> None:
        """Record a host. Raises HostKnown."""
        try:
            with self._writing() as connection:
                connection.execute(sa.insert(hosts).values(name=name, address=address, also=list(also), added=now()))
        except sa.exc.IntegrityError as error:
            raise HostKnown(host=name) from error
        log.info("host added", host=name, address=address)

    def forget(self, name: str) -> None:
        """Remove the host and its storages; its certificates are revoked. Raises NoSuchHost."""
        with self._writing() as connection:
            if connection.execute(sa.delete(hosts).where(hosts.c.name == name)).rowcount == 0:
                raise NoSuchHost(host=name)
            connection.execute(sa.delete(storages).where(storages.c.host == name))
            _revoke(connection, name)
        log.info("host removed", host=name)

    def host(self, name: str) -> HostRow | None:
        return next((row for row in self.hosts() if row.name == name), None)

    def hosts(self) -> list[HostRow]:
        """Return all hosts, by name."""
        with self._reading() as connection:
            good = _good(connection)
            found = connection.execute(sa.select(hosts).order_by(hosts.c.name)).mappings()
            return [
                HostRow(row["name"], row["address"], tuple(row["also"]), row["added"], row["name"] not in good)
                for row in found
            ]

    # -- the authority, and its certificates

    def authority(self) -> str:
        """Return the fingerprint of the authority that signs for these hosts; empty before the first one has."""
        with self._reading() as connection:
            return connection.scalar(sa.select(authorities.c.fingerprint)) or ""

    def signs(self, fingerprint: str) -> str:
        """Record this authority as the one that signs, unless another is. Returns the recorded one's fingerprint."""
        with suppress(sa.exc.IntegrityError), self._writing() as connection:
            connection.execute(sa.insert(authorities).values(number=1, fingerprint=fingerprint))
        return self.authority()

    def issued(self, serial: int, role: str, name: str, expires: datetime) -> None:
        """Record a certificate, before it is given to anybody: what is not known could not be revoked."""
        values = {"serial": f"{serial:x}", "role": role, "name": name, "expires": expires.isoformat()}
        with self._writing() as connection:
            connection.execute(sa.insert(certificates).values(**values))

    def revoke(self, name: str) -> None:
        """Revoke all certificates of a host. Raises NoSuchHost."""
        with self._writing() as connection:
            if _revoke(connection, name) == 0:
                raise NoSuchHost(host=name)
        log.warning("host revoked", host=name)

    def revoked(self) -> dict[int, datetime]:
        """Return the serials of revoked certificates, and when each was revoked; never fewer than before."""
        query = sa.select(certificates.c.serial, certificates.c.revoked).where(certificates.c.revoked.is_not(None))
        with self._reading() as connection:
            return {int(serial, 16): datetime.fromisoformat(when) for serial, when in connection.execute(query)}

    # -- storages

    def add_storage(self, row: StorageRow) -> None:
        """Record a storage; recording the same again does nothing. Raises StorageKnown."""
        values = {name: getattr(row, name) for name in StorageRow.__slots__}
        try:
            with self._writing() as connection:
                connection.execute(sa.insert(storages).values(**values))
        except sa.exc.IntegrityError as error:
            there = next(s for s in self.storages() if (s.host, s.name) == (row.host, row.name))
            if there != row:
                raise StorageKnown(host=row.host, storage=row.name, path=there.path) from error

    def remove_storage(self, host: str, name: str) -> None:
        """Forget a storage. Raises NoSuchStorage."""
        which = (storages.c.host == host) & (storages.c.name == name)
        with self._writing() as connection:
            if connection.execute(sa.delete(storages).where(which)).rowcount == 0:
                raise NoSuchStorage(host=host, storage=name)

    def storages(self) -> list[StorageRow]:
        query = sa.select(storages).order_by(storages.c.host, storages.c.name)
        with self._reading() as connection:
            return [StorageRow(**found) for found in connection.execute(query).mappings()]


def _good(connection: sa.Connection) -> set[str]:
    """Return the names of agents that have a certificate which was not revoked."""
    good = (certificates.c.role == "agent") & certificates.c.revoked.is_(None)
    return set(connection.execute(sa.select(certificates.c.name).where(good)).scalars())


def _revoke(connection: sa.Connection, name: str) -> int:
    of_host = (certificates.c.name == name) & (certificates.c.role == "agent")
    values = sa.update(certificates).where(of_host & certificates.c.revoked.is_(None)).values(revoked=now())
    return connection.execute(values).rowcount
