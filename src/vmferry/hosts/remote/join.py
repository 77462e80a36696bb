"""Lets an agent join: the token says which certificate to expect, so that nothing is sent to anybody else."""

from __future__ import annotations

import hashlib
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from vmferry.authority.tokens import JoinToken
from vmferry.errors import AgentUnreachable, JoinRefused, UsageError
from vmferry.errors.system import said
from vmferry.hosts.remote.client import CONNECT_S, SILENCE_S
from vmferry.hosts.wire import PROTOCOL, load_error

PORT = 8443


@dataclass(frozen=True, slots=True)
class Papers:
    """Certificate, CA and revocation list for an agent, in PEM."""

    certificate: bytes
    ca: bytes
    revocations: bytes


def split_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT, [IPV6]:PORT, or HOST alone, which means vmferry's own port. Raises UsageError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path or parts.query or parts.username:
        raise UsageError(reason=f"{text!r} is no address: write it as HOST:PORT")
    return host, PORT if port is None else port


def join(address: str, token: JoinToken, sign: Callable[[bytes], Papers]) -> None:
    """Show the agent its token, sign the request that it answers, and send it the certificate.

    Raises JoinRefused, AgentUnreachable, and the agent's own errors.
    """
    context = _pinned(address, token)
    with httpx.Client(verify=context, base_url=f"https://{address}/", timeout=_TIMES) as http:
        shown = {"protocol": PROTOCOL, "secret": b64encode(token.secret).decode()}
        asked = _post(http, address, "join", shown)
        papers = sign(str(asked["request"]).encode())
        given = {
            "ticket": asked["ticket"],
            "certificate": papers.certificate.decode(),
            "ca": papers.ca.decode(),
            "revocations": papers.revocations.decode(),
        }
        _post(http, address, "join/certificate", given)


def _pinned(address: str, token: JoinToken) -> ssl.SSLContext:
    """Return a TLS context that takes the token's certificate and no other. Raises JoinRefused, AgentUnreachable."""
    host, port = split_address(address)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), CONNECT_S) as plain,
            unchecked.wrap_socket(plain) as tls,  # only to see its certificate: nothing is said here
        ):
            shown = tls.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise AgentUnreachable(host=address, reason=said(error)) from error
    if hashlib.sha256(shown).digest() != token.fingerprint:
        reason = (
            "another certificate is shown there than the one that the token names: it has joined already, or is not it"
        )
        raise JoinRefused(address=address, reason=reason)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=shown)
    return context


_TIMES = httpx.Timeout(SILENCE_S, connect=CONNECT_S)


def _post(http: httpx.Client, address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        reply = http.post(path, json=body)
        answer = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise AgentUnreachable(host=address, reason=str(error) or type(error).__name__) from error
    if reply.is_error:
        problem = load_error(answer, address)
        if isinstance(problem, JoinRefused):
            raise JoinRefused(address=address, reason=problem.fields["reason"])
        raise problem
    return dict(answer)
