"""The connection to one agent: HTTPS with certificates on both sides, for all jobs of a process.

Nothing here hangs: an agent that is alive says something every second or two, and one that is silent is away.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any
from urllib.parse import quote

import httpx

from vmferry.authority import Role, TlsFolder, client_context, tls_name
from vmferry.errors import AgentFailed, AgentUnreachable, AgentVersionMismatch, HostUnreachable, PeerRefused
from vmferry.hosts.wire import PROTOCOL, load_error

CONNECT_S = 5.0
SILENCE_S = 15.0
"""Seconds of silence after which an agent is away: it says something every second while a call goes on."""
VERSION_HEADER, REVOCATIONS_HEADER, DUE_HEADER = "vmferry-protocol", "vmferry-revocations", "vmferry-renewal"
SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),  # asyncio sets it only where accept() tells the protocol: 40 ms a call
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
)


@dataclass(frozen=True, slots=True)
class Contact:
    """What an agent says of itself with each answer."""

    revocations: int
    """The number of the revocation list that the agent has."""
    due: bool
    """The agent's certificate is to be renewed."""


class AgentLink:
    """The connection to one agent, by name and address. Calls may raise HostUnreachable and AgentVersionMismatch."""

    def __init__(
        self, name: str, address: str, tls: TlsFolder, met: Callable[[AgentLink, Contact], None] | None = None
    ) -> None:
        """`met` is called after each call, except after those that it makes here itself."""
        self.name = name
        self.address = address
        self._tls = tls
        self._met = met
        self._lock = Lock()
        self._http: tuple[str, httpx.Client] | None = None
        self._inside = local()

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send one request and return its answer. Raises also what the agent raised."""
        with self._answered(method, path, body) as reply:
            reply.read()
            return reply.json()

    @contextmanager
    def lines(self, path: str, body: object) -> Iterator[Iterator[dict[str, Any]]]:
        """Make a call whose answer comes in lines, and yield these; the last line ends the answer."""
        with self._answered("POST", path, body) as reply:
            lines = reply.iter_lines()
            yield self._read(lines)
            with self._mapped():
                for _ in lines:  # to its very end, or the connection could not be used again
                    continue

    def close(self) -> None:
        with self._lock:
            if self._http is not None:
                self._http[1].close()
                self._http = None

    # -- below

    def _read(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        with self._mapped():
            for line in lines:
                yield json.loads(line)
        raise self._away("it ended in the middle of an answer")

    @contextmanager
    def _answered(self, method: str, path: str, body: object) -> Iterator[httpx.Response]:
        """Send a request and yield the reply once its head has arrived. Raises the error that the agent answers."""
        with self._mapped():
            reply = self._sent(method, path, body)
        try:
            self._check_version(reply)
            if reply.is_error:
                with self._mapped():
                    reply.read()
                raise self._problem(reply)
            yield reply
        finally:
            reply.close()
        self._tell(reply.headers)

    def _sent(self, method: str, path: str, body: object) -> httpx.Response:
        """Send a request, again where the agent had just closed a connection used before: calls may be repeated."""
        client = self._client()
        try:
            return client.send(self._request(client, method, path, body), stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            if _tls_trouble(error):
                raise
            return client.send(self._request(client, method, path, body), stream=True)

    def _request(self, client: httpx.Client, method: str, path: str, body: object) -> httpx.Request:
        name = tls_name(Role.AGENT, self.name)
        content = None if body is None else json.dumps(body).encode()
        return client.build_request(method, path, content=content, extensions={"sni_hostname": name})

    def _client(self) -> httpx.Client:
        """Return the HTTP client, a new one when our certificate or the revocation list has changed."""
        version = f"{self._tls.version} {(self._tls.path / 'ca-crl.pem').stat().st_mtime_ns}"
        with self._lock:
            if self._http is not None and self._http[0] == version:
                return self._http[1]
            context = client_context(self._tls.path)
            context.load_verify_locations(cafile=self._tls.path / "ca-crl.pem")
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            transport = httpx.HTTPTransport(verify=context, socket_options=list(SOCKET_OPTIONS), limits=_MANY)
            self._http = (
                version,
                httpx.Client(
                    transport=transport,
                    base_url=f"https://{self.address}/v1/",
                    headers={VERSION_HEADER: str(PROTOCOL), "content-type": "application/json"},
                    timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
                ),
            )
            return self._http[1]

    def _check_version(self, reply: httpx.Response) -> None:
        theirs = reply.headers.get(VERSION_HEADER)
        if theirs != str(PROTOCOL):
            raise version_mismatch(self.name, theirs, "the manager")

    def _problem(self, reply: httpx.Response) -> Exception:
        try:
            return load_error(reply.json(), self.name)
        except ValueError:
            return AgentFailed(host=self.name, reason=f"it answered {reply.status_code}: {reply.text[:200]}")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise self._away(f"no word from {self.address} for so long: {type(error).__name__}") from error
        except (httpx.HTTPError, ssl.SSLError, httpx.InvalidURL) as error:
            if trouble := _tls_trouble(error):
                raise PeerRefused(host=self.name, reason=trouble) from error
            raise self._away(f"{self.address}: {error or type(error).__name__}") from error
        except json.JSONDecodeError as error:
            raise AgentFailed(host=self.name, reason=f"it answered what is no JSON: {error}") from error

    def _away(self, reason: str) -> HostUnreachable:
        return AgentUnreachable(host=self.name, reason=reason)

    def _tell(self, headers: Mapping[str, str]) -> None:
        if self._met is None or getattr(self._inside, "met", False):
            return
        self._inside.met = True
        try:
            contact = Contact(int(headers.get(REVOCATIONS_HEADER, "0")), headers.get(DUE_HEADER) == "due")
            self._met(self, contact)
        finally:
            self._inside.met = False


_MANY = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30)


def version_mismatch(host: str, theirs: str | None, us: str) -> AgentVersionMismatch:
    """Return the error for an agent of another protocol version; `us`: what to upgrade if this side is older."""
    number = int(theirs) if theirs and theirs.isdecimal() else 0
    older = us if number > PROTOCOL else host
    return AgentVersionMismatch(host=host, theirs=theirs or "none", ours=PROTOCOL, older=older)


def _tls_trouble(error: BaseException) -> str | None:
    """Return why one side refuses the other's certificate; None where the error is something else."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {at.verify_message}"
        if isinstance(at, ssl.SSLError) and "ALERT" in str(at.reason or at):
            return f"it refuses this side's certificate: {at.reason}"
        at = at.__cause__ or at.__context__
    return None


def part(text: str | Path) -> str:
    """Return the text quoted as one segment of a URL's path."""
    return quote(str(text), safe="")
