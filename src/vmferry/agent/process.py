"""The process of an agent, for `vmferry agent`: joins if it has not, then serves until a signal ends it."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vmferry.agent.joining import Joining, make_join_app
from vmferry.agent.listening import configured, listen
from vmferry.agent.metrics import REGISTRY
from vmferry.agent.service import Agent, AgentServer, HostsFor
from vmferry.agent.tunnels import TunnelTransport
from vmferry.authority import TlsFolder
from vmferry.errors import AgentRunning, StateUnusable, UsageError, WorkerRunning
from vmferry.errors.system import said
from vmferry.hosts.fence import Fence
from vmferry.hosts.interface import Hosts
from vmferry.model.fleet import host_port
from vmferry.process import log as worker_log
from vmferry.process.folder_lock import WorkerLock

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Options:
    """The options that an agent is started with."""

    state: Path
    listen: tuple[str, int]
    connect: str
    metrics: tuple[str, int] | None = None
    """A plain listener on loopback, for Prometheus."""
    link_bytes_s: int | None = None
    """Bytes per second of the network to other hosts in each direction, if the cards do not tell it, or too much."""


def new_token(state: Path) -> str:
    """Return a token to join with; the agent need not run yet. Raises UsageError if it has joined already."""
    if TlsFolder(state).there:
        reason = "this agent has joined already: to let another manager have it, stop it and use --forget"
        raise UsageError(reason=reason)
    _make(state)
    return Joining(state).new_token().text


def forget(state: Path) -> None:
    """Remove certificates and manager, so that the next start joins anew. Storages and epochs stay.

    Raises AgentRunning.
    """
    lock = _locked(state)
    TlsFolder(state).remove()
    lock.release()


def run(options: Options, hosts_for: HostsFor | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises AgentRunning, UsageError, StateUnusable."""
    metrics = _metrics_listener(options.metrics) if options.metrics is not None else None
    worker_log.start(options.state / "agent.log", foreground=True)
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, _leave)  # until it serves, and between joining and serving
    lock = _locked(options.state)
    try:
        if metrics is not None:
            _serve_metrics(metrics)
        tls = TlsFolder(options.state)
        with _listening(options) as listener:
            if not tls.there and not _join(options, tls, listener):
                return
            agent = Agent(options.state, options.connect, hosts_for or partial(_libvirt_hosts, tls, options))
            log.info("serving", host=agent.name, address=_address(listener), connect=options.connect)
            agent.serve(listener.dup())
        log.info("left", host=agent.name)
    finally:
        lock.release()


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _libvirt_hosts(tls: TlsFolder, options: Options, fence: Fence) -> Hosts:
    from vmferry.hosts.libvirt.driver import LibvirtHosts
    from vmferry.hosts.libvirt.nbd_exports import ExportAddress, Exports

    front = ExportAddress(tls.address, tls.path, options.link_bytes_s)
    crossing = TunnelTransport(options.connect, tls, link_bytes_s=options.link_bytes_s)
    return LibvirtHosts(fence, Exports(front, crossing.expose), crossing)


def _join(options: Options, tls: TlsFolder, listener: socket.socket) -> bool:
    """Wait for a manager to let this agent join. Return False if it was stopped instead.

    uvicorn closes its listening socket, so it gets a second descriptor: a client that connects meanwhile waits in the
    queue.
    """
    joining = Joining(options.state)
    token = joining.new_token() if not joining.has_token else None
    server: list[AgentServer] = []
    app = make_join_app(joining, tls, lambda: _stop(server))
    server.append(_server(app, joining))
    log.info("waiting to join", address=_address(listener), cure="vmferry host add NAME --address ... --token ...")
    if token is not None:
        print(f"token: {token.text}", flush=True)
    server[0].run([listener.dup()])
    if not tls.there:
        return False
    joining.over()
    log.info("joined", host=tls.name)
    return True


def _server(app: FastAPI, joining: Joining) -> AgentServer:
    made = AgentServer(configured(app, joining.context()))
    made.leave = lambda: None
    return made


def _stop(server: list[AgentServer]) -> None:
    server[0].should_exit = True


def _listening(options: Options) -> socket.socket:
    try:
        listener = listen(*options.listen)
    except OSError as error:
        raise UsageError(reason=f"cannot listen on {options.listen[0]}:{options.listen[1]}: {said(error)}") from error
    (options.state / "address").write_text(f"{_address(listener)}\n")
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return host_port(host, port)


def _locked(state: Path) -> WorkerLock:
    _make(state)
    lock = WorkerLock(state)
    try:
        lock.take()
    except WorkerRunning as error:
        raise AgentRunning(pid=error.fields["pid"], state=state) from error
    return lock


def _make(state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateUnusable(state=state, reason=said(error)) from error


def _metrics_listener(at: tuple[str, int]) -> socket.socket:
    """Listen for Prometheus, without TLS and so on loopback only: a scraper needs no certificate. Raises UsageError."""
    if at[0] not in ("127.0.0.1", "::1"):
        raise UsageError(reason=f"--metrics has no TLS and listens on loopback only, not on {at[0]}")
    try:
        return listen(*at)
    except OSError as error:
        raise UsageError(reason=f"cannot listen on {at[0]}:{at[1]}: {said(error)}") from error


def _serve_metrics(listener: socket.socket) -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    def serve() -> None:
        uvicorn.Server(configured(app, None)).run([listener])

    log.info("metrics", address=_address(listener))
    Thread(target=serve, name="metrics", daemon=True).start()
