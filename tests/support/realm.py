"""Agents for tests: a manager's authority, and agents over real TLS on loopback, in threads of the test's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

from vmferry.agent.listening import listen
from vmferry.agent.path_policy import ConfinedBookmarks, PathPolicy
from vmferry.agent.service import Agent
from vmferry.authority import Authority, Issued, Role, TlsFolder, make_key, make_request
from vmferry.authority.ca import LIFE
from vmferry.hosts.fence import Fence
from vmferry.hosts.interface import Hosts
from vmferry.hosts.remote.client import AgentLink
from vmferry.hosts.wire import Call
from vmferry.lab.programs import wait_for
from vmferry.model import FencingToken
from vmferry.transfer import Transfer

LOOPBACK = "127.0.0.1"


class Anywhere:
    """A toy host's files lie nowhere, so only its bookmarks are brought home."""

    def __init__(self, name: str, state: Path) -> None:
        self._bookmarks = ConfinedBookmarks(name, state)

    def allowed(self, call: Call, token: FencingToken | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._at_home(value) for name, value in arguments.items()}

    def told(self, answer: Any) -> Any:
        return answer

    def _at_home(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._at_home(held) for held in value]
        if not isinstance(value, Transfer):
            return value
        return replace(value, bookmarks=self._bookmarks.here(value.bookmarks))


@dataclass
class Served:
    """An agent that answers."""

    name: str
    state: Path
    agent: Agent
    address: str
    thread: Thread

    def stop(self) -> None:
        self.agent.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@dataclass
class Realm:
    """One authority, and everybody who has a certificate of it."""

    folder: Path
    served: list[Served] = field(default_factory=list)
    revoked: dict[int, datetime] = field(default_factory=dict)

    @property
    def authority(self) -> Authority:
        return Authority(self.folder / "authority")

    def certificate(
        self, name: str, role: Role, life: timedelta = LIFE, at: Path | None = None
    ) -> tuple[TlsFolder, Issued]:
        """Installed in a folder of that name."""
        key = make_key()
        issued = self.authority.issue(make_request(key, name), role, name, [LOOPBACK], life)
        tls = TlsFolder(at or self.folder / name)
        tls.install(key, issued.pem, self.authority.certificate_pem, self.revocations())
        return tls, issued

    def revocations(self) -> bytes:
        return self.authority.revocations(self.revoked, len(self.revoked) + 1)

    def serve(
        self, name: str, hosts: Hosts, connect: str = "memory", *, confined: bool = False, port: int = 0
    ) -> Served:
        """An agent in front of these hosts; its acts go through the hosts' own fence, and the agent's."""
        state = self.folder / name
        if not TlsFolder(state).there:
            self.certificate(name, Role.AGENT)

        def open_hosts(_: Fence) -> Hosts:
            return hosts

        anywhere: Callable[[str], PathPolicy] | None = None if confined else lambda own: Anywhere(own, state)
        agent = Agent(state, connect, open_hosts, anywhere)
        listener = listen(LOOPBACK, port)
        thread = Thread(target=agent.serve, args=(listener,), name=f"agent {name}", daemon=True)
        thread.start()
        wait_for(lambda: agent.started, f"the agent {name}", 20)
        served = Served(name, state, agent, f"{LOOPBACK}:{listener.getsockname()[1]}", thread)
        self.served.append(served)
        return served

    def link(self, served: Served, tls: TlsFolder | None = None) -> AgentLink:
        """As a manager, or whoever that certificate is of."""
        if tls is None:
            manager = self.folder / "manager"
            tls = TlsFolder(manager) if manager.exists() else self.certificate("manager", Role.MANAGER)[0]
        return AgentLink(served.name, served.address, tls)

    def close(self) -> None:
        for served in self.served:
            served.stop()
