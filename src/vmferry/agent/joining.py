"""Joining: before it has a certificate, an agent answers only a join request, with a token that is good once."""

from __future__ import annotations

import hmac
import json
import secrets
import shutil
import ssl
import time
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from vmferry.agent.error_responses import LARGEST_BODY, install, mismatch
from vmferry.agent.metrics import REFUSED
from vmferry.authority import TlsFolder, make_key, make_request
from vmferry.authority.keys import key_pem, load_key, named
from vmferry.authority.tokens import JoinToken, hashed
from vmferry.durable import remove, write
from vmferry.errors import BadRequest, JoinRefused
from vmferry.hosts.wire import PROTOCOL

log = structlog.get_logger()

TOKEN_S = 3600.0
_CERT, _KEY = "cert.pem", "key.pem"
_LIFE = timedelta(days=3650)


class Joining:
    """The folder STATE/joining: a key with a self-signed certificate, and the hash of the token."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "joining"
        self._token = self._folder / "token.json"
        self._lock = Lock()

    def new_token(self) -> JoinToken:
        """Return a new token, good for an hour and once; an earlier token becomes invalid."""
        if not (self._folder / _CERT).exists():
            self._make_certificate()
        token = JoinToken.make(ssl.PEM_cert_to_DER_cert((self._folder / _CERT).read_text()))
        kept = {"hash": hashed(token.secret), "expires": time.time() + TOKEN_S}
        write(self._token, json.dumps(kept).encode())
        return token

    @property
    def has_token(self) -> bool:
        """Is there a token that is good now?"""
        try:
            return bool(time.time() < json.loads(self._token.read_text())["expires"])
        except FileNotFoundError:
            return False

    def spend(self, secret: bytes) -> bool:
        """Use the token up if this is its secret. Return whether it was, True only once; a wrong secret spends nothing.

        Of two calls at the same moment only one gets True.
        """
        with self._lock:
            try:
                kept = json.loads(self._token.read_text())
            except FileNotFoundError:
                return False
            good = hmac.compare_digest(kept["hash"], hashed(secret)) and time.time() < kept["expires"]
            if good:
                remove(self._token)
            return good

    def context(self) -> ssl.SSLContext:
        """Return a TLS 1.3 context with the certificate that the token names; clients need no certificate yet."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._folder / _CERT, self._folder / _KEY)
        return context

    def key(self) -> ec.EllipticCurvePrivateKey:
        return load_key((self._folder / _KEY).read_bytes())

    def over(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_certificate(self) -> None:
        key = make_key()
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(named("joining")).issuer_name(named("joining"))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + _LIFE)
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        write(self._folder / _KEY, key_pem(key))
        write(self._folder / _CERT, pem)


class JoinBody(BaseModel):
    """A manager's request to join: protocol version, and the token's secret."""

    model_config = ConfigDict(extra="forbid")

    protocol: int
    secret: Annotated[str, Field(max_length=100)]


class JoinedCertificateBody(BaseModel):
    """The certificate that a manager signed for this agent, with CA and revocation list, in PEM."""

    model_config = ConfigDict(extra="forbid")

    ticket: Annotated[str, Field(max_length=100)]
    certificate: Annotated[str, Field(max_length=16384)]
    ca: Annotated[str, Field(max_length=16384)]
    revocations: Annotated[str, Field(max_length=200_000)]


def make_join_app(joining: Joining, tls: TlsFolder, joined: Callable[[], None]) -> FastAPI:
    """Return an app with two routes: exchange the token for a certificate request, then deliver the certificate.

    After the second `joined` is called.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, max_body_size=LARGEST_BODY)
    tickets: set[str] = set()
    host = "the agent"

    @app.post("/join")
    def join(body: JoinBody) -> dict[str, Any]:
        if body.protocol != PROTOCOL:
            raise mismatch(host, str(body.protocol))
        if not joining.spend(_decoded(body.secret)):
            REFUSED.labels("token").inc()
            log.warning("a join was refused: the token is wrong, was used before or has run out")
            raise JoinRefused(address=host, reason="the token is wrong, was used before or has run out")
        ticket = secrets.token_urlsafe(32)
        tickets.add(ticket)
        request = make_request(joining.key(), "agent")
        return {"protocol": PROTOCOL, "ticket": ticket, "request": request.decode()}

    @app.post("/join/certificate")
    def certificate(body: JoinedCertificateBody) -> dict[str, Any]:
        if body.ticket not in tickets:
            raise JoinRefused(address=host, reason="this certificate was not asked for")
        try:
            words = (body.certificate.encode(), body.ca.encode(), body.revocations.encode())
            tls.install(joining.key(), *words)
        except ValueError as error:
            raise BadRequest(reason=f"the certificate cannot be used: {error}") from error
        tickets.clear()
        joined()
        return {"protocol": PROTOCOL}

    install(app, host)
    return app


def _decoded(secret: str) -> bytes:
    try:
        return b64decode(secret, validate=True)
    except ValueError:
        return b""
