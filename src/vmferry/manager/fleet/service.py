"""The hosts and storages of one manager: it signs their certificates, and knows where their agents are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import structlog

from vmferry.authority import Authority, Role, TlsFolder, check_name, make_key, make_request
from vmferry.authority.tokens import JoinToken
from vmferry.errors import (
    AgentVersionMismatch,
    HostUnreachable,
    NoSuchHost,
    NoSuchStorage,
    OtherAuthority,
    PeerRefused,
    StoreAway,
    VmferryError,
)
from vmferry.hosts.interface import Hosts
from vmferry.hosts.remote.client import AgentLink, Contact, part
from vmferry.hosts.remote.driver import RemoteHosts
from vmferry.hosts.remote.join import Papers, join, split_address
from vmferry.manager.store.fleet import FleetStore, HostRow, StorageRow
from vmferry.model.fleet import HostState, HostView, StorageView, host_port

log = structlog.get_logger()

MANAGER = "manager"
SETTLE_S, SETTLE_POLL_S = 20.0, 0.1
"""An agent that has just joined answers so soon."""
TEND_S = 3600.0
"""How often all agents are looked at, so that no certificate runs out unseen."""
NEWEST_S = 1.0
"""So long a call relies on the number of revocations that was read last: a job makes a hundred calls."""


class Fleet:
    """Hosts, storages and certificates of one state folder. All methods may be called from any thread."""

    def __init__(self, state: Path, url: str) -> None:
        self._state = state
        self._store = FleetStore(url)
        self._tls = TlsFolder(state)
        self._lock = Lock()
        self._papers = Lock()
        self._links: dict[str, AgentLink] = {}
        self._closing = Event()
        self._looked = -NEWEST_S, 0
        self._tender = Thread(target=self._tend, name="fleet", daemon=True)

    def check(self) -> None:
        """Raise OtherAuthority if the hosts in the records would not trust this manager."""
        if self._store.authority() or self._store.hosts():
            self._authority()

    def start(self) -> None:
        """Start the thread that looks at all agents every TEND_S, while there are any."""
        self._tender.start()

    def close(self) -> None:
        self._closing.set()
        for link in self._links.values():
            link.close()
        self._store.close()

    def over(self, here: Hosts) -> Hosts:
        """Return the hosts of `here` by libvirt URI, together with this fleet's hosts by name."""
        return RemoteHosts(here, self)

    # -- hosts

    def find(self, name: str) -> AgentLink | None:
        """Return the link to the agent of that name; None if no such host was added."""
        row = self._store.host(name)
        return self._link(row) if row is not None else None

    def add(self, name: str, address: str, token: str, also: Sequence[str] = ()) -> HostView:
        """Add a host: its agent joins by the token and gets a certificate.

        `also`: other addresses under which other hosts will reach it. Raises UsageError, HostKnown, JoinRefused,
        AgentUnreachable, OtherAuthority.
        """
        check_name(name)
        host, port = split_address(address)
        full = host_port(host, port)
        parsed = JoinToken.parse(token)
        self._authority()  # before there are hosts: then none is made any more
        self._store.add(name, full, also)
        try:
            join(full, parsed, lambda request: self._sign(request, Role.AGENT, name, [host, *also]))
        except BaseException:
            self._store.forget(name)
            raise
        return self._settled(name)

    def _settled(self, name: str) -> HostView:
        """Return the host once its agent serves with its new certificate, or after SETTLE_S."""
        deadline = time.monotonic() + SETTLE_S
        while (view := self.show(name)).state is not HostState.ANSWERS and time.monotonic() < deadline:
            self._closing.wait(SETTLE_POLL_S)
        return view

    def hosts(self) -> list[HostView]:
        """Return all hosts, by name; each one's agent is asked for its state."""
        rows = self._store.hosts()
        with ThreadPoolExecutor(max_workers=max(1, len(rows)), thread_name_prefix="hosts") as pool:
            return list(pool.map(self._view, rows))

    def show(self, name: str) -> HostView:
        """Return a host, with the state that its agent tells. Raises NoSuchHost."""
        return self._view(self._row(name))

    def revoke(self, name: str) -> HostView:
        """Revoke a host's certificates. Raises NoSuchHost.

        From now on nobody trusts them: those agents that answer have heard of it when this returns.
        """
        self._row(name)
        self._store.revoke(name)
        self._spread()
        return self.show(name)

    def remove(self, name: str) -> None:
        """Forget a host, its storages and its certificates. Raises NoSuchHost."""
        self._row(name)
        self._store.forget(name)
        with self._lock:
            link = self._links.pop(name, None)
        if link is not None:
            link.close()
        self._spread()

    # -- storages

    def add_storage(self, name: str, host: str, path: Path, grade: str) -> StorageView:
        """Have a host serve a folder as a storage. Raises NoSuchHost, HostUnreachable, StorageKnown, StorageUnfit."""
        body = {"path": str(path), "grade": grade}
        answer = self._asked(host).ask("PUT", f"storages/{part(check_name(name))}", body)
        self._store.add_storage(StorageRow(host, name, str(answer["path"]), str(answer["uuid"]), str(answer["grade"])))
        return next(s for s in self.storages() if (s.host, s.name) == (host, name))

    def storages(self) -> list[StorageView]:
        """Return all storages, by host and name.

        The same storage on several hosts is recognized by its marker, not by its name.
        """
        rows = self._store.storages()
        return [
            StorageView(
                row.name,
                row.host,
                row.path,
                row.uuid,
                row.grade,
                tuple(f"{o.host}:{o.name}" for o in rows if o.uuid == row.uuid and o is not row),
            )
            for row in rows
        ]

    def remove_storage(self, name: str, host: str) -> None:
        """Have a host serve a storage no longer. Raises NoSuchHost, HostUnreachable, NoSuchStorage."""
        try:
            self._asked(host).ask("DELETE", f"storages/{part(name)}")
        except NoSuchStorage:
            log.info("the agent had no such storage", host=host, storage=name)
        self._store.remove_storage(host, name)

    # -- papers

    def _sign(self, request: bytes, role: Role, name: str, addresses: Sequence[str]) -> Papers:
        authority = self._authority()
        issued = authority.issue(request, role, name, addresses)
        self._store.issued(issued.serial, role, name, issued.expires)
        return Papers(issued.pem, authority.certificate_pem, self._revocations())

    def _authority(self) -> Authority:
        """Return the authority, which is the same for all managers of the same records. Raises OtherAuthority."""
        folder = self._state / "authority"
        with self._lock:
            known = self._store.authority()
            if not folder.exists() and (known or self._store.hosts()):
                raise OtherAuthority(folder=folder)
            authority = Authority(folder)
            if (known or self._store.signs(authority.fingerprint)) != authority.fingerprint:
                raise OtherAuthority(folder=folder)
            return authority

    def _revocations(self) -> bytes:
        revoked = self._store.revoked()
        return self._authority().revocations(revoked, self._count(revoked))

    def _own_tls(self) -> TlsFolder:
        """Return the folder of the manager's own certificate, which is renewed when it is due, and of revocations."""
        with self._papers:
            if not self._tls.there or self._tls.due():
                key = make_key()
                papers = self._sign(make_request(key, MANAGER), Role.MANAGER, MANAGER, [])
                self._tls.install(key, papers.certificate, papers.ca, papers.revocations)
            elif self._tls.revocations_number() < self._count(self._store.revoked()):
                self._tls.set_revocations(self._revocations())  # another manager revoked
        return self._tls

    def _spread(self) -> None:
        """Bring the list of revocations to all agents that answer, and to this manager itself."""
        self._own_tls().set_revocations(self._revocations())
        rows = [row for row in self._store.hosts() if not row.revoked]
        with ThreadPoolExecutor(max_workers=max(1, len(rows)), thread_name_prefix="revoking") as pool:
            for row in rows:
                pool.submit(self._quietly, row.name, partial(self._push, self._link(row)))

    def _push(self, link: AgentLink) -> None:
        link.ask("PUT", "revocations", {"revocations": self._revocations().decode()})

    def _met(self, link: AgentLink, contact: Contact) -> None:
        """Bring an agent what it lacks, after each call to it. What fails here is tried again after the next one."""
        self._quietly(link.name, lambda: self._catch_up(link, contact))
        if contact.due:
            self._quietly(link.name, lambda: self._renew(link))

    def _catch_up(self, link: AgentLink, contact: Contact) -> None:
        if contact.revocations < self._newest():
            self._push(link)

    def _newest(self) -> int:
        """Return the number of the newest list of revocations; another manager's is seen up to NEWEST_S later."""
        looked, number = self._looked
        return number if time.monotonic() - looked < NEWEST_S else self._count(self._store.revoked())

    def _count(self, revoked: Mapping[int, datetime]) -> int:
        """Return the number of the list that names these revocations, and remember it for `_newest`."""
        number = len(revoked) + 1
        self._looked = time.monotonic(), number
        return number

    def _renew(self, link: AgentLink) -> None:
        request = str(link.ask("POST", "renewal")["request"]).encode()
        names = [split_address(link.address)[0], *self._row(link.name).also]
        papers = self._sign(request, Role.AGENT, link.name, names)
        body = {
            "certificate": papers.certificate.decode(),
            "ca": papers.ca.decode(),
            "revocations": papers.revocations.decode(),
        }
        link.ask("PUT", "certificate", body)
        log.info("certificate renewed", host=link.name)

    def _quietly(self, host: str, act: Callable[[], object]) -> None:
        try:
            act()
        except VmferryError as error:
            log.warning("an agent could not be told", host=host, sentence=str(error))

    def _tend(self) -> None:
        while True:
            try:
                self._look()
            except StoreAway as away:
                log.warning("agents could not be looked at; trying later", reason=str(away))
            if self._closing.wait(TEND_S):
                return

    def _look(self) -> None:
        for row in self._store.hosts():
            if not row.revoked and not self._closing.is_set():
                self._quietly(row.name, partial(self._link(row).ask, "GET", "about"))

    # -- within

    def _row(self, name: str) -> HostRow:
        row = self._store.host(name)
        if row is None:
            raise NoSuchHost(host=name)
        return row

    def _asked(self, name: str) -> AgentLink:
        return self._link(self._row(name))

    def _link(self, row: HostRow) -> AgentLink:
        """Return the link to a host's agent.

        Raises PeerRefused where hosts were added by a manager that did not give this one its authority.
        """
        try:
            tls = self._own_tls()
        except OtherAuthority as error:
            raise PeerRefused(host=row.name, reason=str(error)) from error
        with self._lock:
            link = self._links.get(row.name)
            if link is None or link.address != row.address:
                link = self._links[row.name] = AgentLink(row.name, row.address, tls, self._met)
            return link

    def _view(self, row: HostRow) -> HostView:
        view = HostView(row.name, row.address, row.added, HostState.ANSWERS)
        if row.revoked:
            return replace(view, state=HostState.REVOKED, sentence="its certificate was revoked")
        try:
            about: dict[str, Any] = self._link(row).ask("GET", "about")
        except AgentVersionMismatch as error:
            return replace(view, state=HostState.DIFFERS, sentence=str(error))
        except HostUnreachable as error:
            return replace(view, state=HostState.AWAY, sentence=str(error))
        return replace(
            view,
            version=str(about["version"]),
            hostname=str(about["hostname"]),
            connect=str(about["connect"]),
            certificate_expires=str(about["expires"]),
        )
