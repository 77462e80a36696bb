"""An agent that has joined: all its parts, on one listener."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import FrameType

import uvicorn
from fastapi import FastAPI

from vmferry.agent import admin_routes, host_routes
from vmferry.agent.admin_routes import AgentAdmin
from vmferry.agent.error_responses import install
from vmferry.agent.host_routes import HostCallService
from vmferry.agent.listening import configured
from vmferry.agent.middleware import AgentMiddleware
from vmferry.agent.operations import Operations
from vmferry.agent.path_policy import PathPolicy, ToStorages
from vmferry.agent.peer_policy import PeerPolicy
from vmferry.agent.storages import Storages
from vmferry.authority import TlsFolder, server_context
from vmferry.hosts.fence import Fence
from vmferry.hosts.interface import Hosts

LAST_WORDS_S = 10.0
HostsFor = Callable[[Fence], Hosts]
"""Opens the real host; its acts go through this fence."""


class Agent:
    """Serves the libvirt connection `connect` to managers, until it is stopped."""

    def __init__(
        self, state: Path, connect: str, hosts_for: HostsFor, confined: Callable[[str], PathPolicy] | None = None
    ) -> None:
        """Build the agent from its state folder.

        `confined` returns the policy for paths, by the agent's name; without it, the declared storages limit them.
        """
        tls = TlsFolder(state)
        self.name = tls.name
        fence = Fence(state)
        hosts = hosts_for(fence)
        storages = Storages(self.name, state)
        to_storages = ToStorages(self.name, state, storages, hosts.open(connect), tls.path)
        self.operations = Operations(self.name, fence)
        self._context = server_context(tls.path)
        trust = PeerPolicy(tls)
        office = AgentAdmin(self.name, connect, tls, trust, storages, self.operations)
        office.renewed = lambda: _reload(self._context, tls.path)
        control = HostCallService(
            self.name, connect, hosts, confined(self.name) if confined else to_storages, self.operations
        )
        self._server = AgentServer(configured(_app(self.name, control, office, trust), self._context))
        self._server.leave = self._leave

    def serve(self, listener: socket.socket) -> None:
        """Serve on the listener; returns after `stop` or a signal."""
        self._server.run([listener])

    def stop(self) -> None:
        """Stop the agent: running acts are asked to stop, and their followers hear of it. Callable from any thread."""
        self._leave()
        self._server.should_exit = True

    @property
    def started(self) -> bool:
        return self._server.started

    def _leave(self) -> None:
        self.operations.leave(LAST_WORDS_S)


class AgentServer(uvicorn.Server):
    """A uvicorn server that calls `leave` when it is asked to exit, so that acts and their streams end."""

    leave: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        def then() -> None:
            self.leave()
            self.should_exit = True

        Thread(target=then, name="leaving", daemon=True).start()


def _app(name: str, control: HostCallService, office: AgentAdmin, trust: PeerPolicy) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.control, app.state.office = control, office
    app.include_router(host_routes.router)
    app.include_router(admin_routes.router)
    app.add_middleware(AgentMiddleware, name=name, trust=trust)
    install(app, name)
    return app


def _reload(context: ssl.SSLContext, folder: Path) -> None:
    context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
