"""Tunnels between agents, with unix sockets on each host.

Three for libvirt's live migration; one for each image that is read over a slow link, which is compressed on the way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from vmferry.authority import TlsFolder, client_context, server_context
from vmferry.errors import BadRequest
from vmferry.hosts.libvirt.network_cards import is_slow
from vmferry.hosts.remote.join import split_address
from vmferry.model.fleet import host_port
from vmferry.tunnel import Tickets, TunnelClient, TunnelPeer, TunnelServer

RUN = Path("/run/vmferry")
LIBVIRTD = Path("/run/libvirt/libvirt-sock")
TICKET_S = 600.0
"""Between the destination's being ready and the source's first connection."""
EXPOSED_S = 30 * 24 * 3600.0
"""An image may take that long; its ticket goes with the job."""
STREAMS = ("libvirt", "memory", "disks")


class TunnelTransport:
    """The tunnels of one agent, as libvirt and QEMU use them. Implements MigrationTransport.

    Both hosts give QEMU the same path, each on its own machine.
    """

    def __init__(self, connect: str, tls: TlsFolder, run: Path = RUN, link_bytes_s: int | None = None) -> None:
        """Connect tunnels to the libvirtd of `connect`; their server listens only when it is needed.

        `link_bytes_s`: bytes per second that the link carries in each direction; None as the network cards tell it.
        """
        self._libvirtd = _socket_of(connect)
        self._tls = tls
        self._run = run
        self._link_bytes_s = link_bytes_s
        self._tickets = Tickets()
        self._given: dict[str, list[str]] = {}
        self._exposed: dict[str, dict[str, str]] = {}
        self._server: TunnelServer | None = None
        self._lock = Lock()

    def receive(self, job: str) -> str:
        folder = self._folder(job)
        exposed = {"libvirt": self._libvirtd, "memory": folder / "memory", "disks": folder / "disks"}
        with self._lock:
            for old in self._given.pop(job, []):  # of an attempt that was cut off
                self._tickets.withdraw(old)
            tickets = {name: self._tickets.issue(exposed[name], TICKET_S, None) for name in STREAMS}
            self._given[job] = list(tickets.values())
            port = self._listening().port
        return json.dumps({"host": self._tls.address, "port": port, "tickets": tickets})

    @contextmanager
    def to(self, job: str, endpoint: str) -> Iterator[tuple[str, str, str]]:
        """Open a job's tunnels to the host that gave `endpoint`, and yield their URIs: libvirt, memory, disks.

        Raises BadRequest for an endpoint that no agent has given.
        """
        host, port, tickets = _parsed(endpoint)
        folder, context = self._folder(job), client_context(self._tls.path)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            for name in STREAMS:
                peer = TunnelPeer(host, port, tickets[name])
                stack.enter_context(TunnelClient(folder / name, peer, context, slow=self._slow))
            connect = f"qemu+unix:///system?socket={folder / 'libvirt'}"
            yield connect, f"unix://{folder / 'memory'}", f"unix://{folder / 'disks'}"

    def expose(self, job: str, name: str) -> tuple[Path, str, str]:
        folder = self._images / job
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket = folder / name
        socket.unlink(missing_ok=True)
        with self._lock:
            exposed = self._exposed.setdefault(job, {})
            self._tickets.withdraw(exposed.get(name, ""))
            ticket = exposed[name] = self._tickets.issue(socket, EXPOSED_S, None)
            port = self._listening().port
        return socket, host_port(self._tls.address, port), ticket

    @contextmanager
    def connect(self, address: str, ticket: str) -> Iterator[Path]:
        host, port = split_address(address)
        self._images.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            TemporaryDirectory(dir=self._images) as folder,
            TunnelClient(
                Path(folder, "far"), TunnelPeer(host, port, ticket), client_context(self._tls.path), slow=self._slow
            ) as near,
        ):
            yield near.at

    def end(self, job: str) -> None:
        """Withdraw a job's tickets, cut the connections that they admitted, and remove its sockets."""
        with self._lock:
            for ticket in (*self._given.pop(job, []), *self._exposed.pop(job, {}).values()):
                self._tickets.withdraw(ticket)
        shutil.rmtree(self._run / job, ignore_errors=True)
        shutil.rmtree(self._images / job, ignore_errors=True)

    def close(self) -> None:
        """Cut all connections of the tunnel server, and accept no more."""
        with self._lock:
            if self._server is not None:
                self._server.close()

    @property
    def _slow(self) -> bool | None:
        return is_slow(self._tls.address, self._link_bytes_s)

    @property
    def _images(self) -> Path:
        return self._run / "images"

    def _folder(self, job: str) -> Path:
        """Return a job's folder, made empty, in which QEMU makes its sockets."""
        folder = self._run / job
        shutil.rmtree(folder, ignore_errors=True)
        self._run.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        return folder

    def _listening(self) -> TunnelServer:
        if self._server is None:
            at, context = (self._tls.address, 0), server_context(self._tls.path)
            self._server = TunnelServer(at, context, self._tickets, slow=self._slow)
        return self._server


def _socket_of(connect: str) -> Path:
    given = parse_qs(urlsplit(connect).query).get("socket")
    return Path(given[0]) if given else LIBVIRTD


def _parsed(endpoint: str) -> tuple[str, int, dict[str, str]]:
    try:
        parsed = json.loads(endpoint)
        return str(parsed["host"]), int(parsed["port"]), {name: str(parsed["tickets"][name]) for name in STREAMS}
    except (ValueError, KeyError, TypeError) as error:
        raise BadRequest(reason=f"that is no way to a host: {error}") from error
