"""The agent's administrative routes: about itself, its storages, its certificate and its revocation list."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from vmferry.agent.metrics import CERTIFICATE
from vmferry.agent.operations import Operations
from vmferry.agent.peer_policy import PeerPolicy
from vmferry.agent.storages import Declared, Storages
from vmferry.authority import TlsFolder, make_key, make_request
from vmferry.errors import BadRequest
from vmferry.hosts.wire import PROTOCOL
from vmferry.process.version import VERSION

router = APIRouter(tags=["admin"])

Pem = Annotated[str, Field(max_length=500_000)]


class ServedStorageBody(BaseModel):
    """Request to serve a storage."""

    model_config = ConfigDict(extra="forbid")

    path: Path
    grade: Annotated[str, Field(max_length=64)] = ""


class RevocationsBody(BaseModel):
    """A revocation list, in PEM."""

    model_config = ConfigDict(extra="forbid")

    revocations: Pem


class RenewedCertificateBody(BaseModel):
    """A certificate for the request that this agent made last, with CA and revocation list, all in PEM."""

    model_config = ConfigDict(extra="forbid")

    certificate: Pem
    ca: Pem
    revocations: Pem


class AgentAdmin:
    """Certificates, storages and load of this agent, for the manager's administrative calls."""

    def __init__(
        self, name: str, connect: str, tls: TlsFolder, trust: PeerPolicy, storages: Storages, operations: Operations
    ) -> None:
        self.name = name
        self.trust = trust
        self.storages = storages
        self._connect = connect
        self._tls = tls
        self._operations = operations
        self._lock = Lock()
        self._key: ec.EllipticCurvePrivateKey | None = None
        self.renewed: Callable[[], None] = lambda: None
        self._note_expiry()

    def about(self) -> dict[str, Any]:
        certificate = self._tls.certificate()
        return {
            "name": self.name,
            "version": VERSION,
            "protocol": PROTOCOL,
            "hostname": socket.gethostname(),
            "connect": self._connect,
            "pid": os.getpid(),
            "operations": self._operations.count,
            "serial": f"{certificate.serial_number:x}",
            "expires": certificate.not_valid_after_utc.isoformat(),
        }

    def ask_for_certificate(self) -> str:
        """Return a certificate request with a new key, in PEM; the key of an earlier request is forgotten."""
        with self._lock:
            self._key = make_key()
            return make_request(self._key, self.name).decode()

    def take_certificate(self, body: RenewedCertificateBody) -> None:
        """Use the renewed certificate for new connections. Raises BadRequest."""
        with self._lock:
            if self._key is None:
                raise BadRequest(reason="no certificate was asked for")
            words = (body.certificate.encode(), body.ca.encode(), body.revocations.encode())
            try:
                self._tls.install(self._key, *words)
            except ValueError as error:
                raise BadRequest(reason=f"the certificate cannot be used: {error}") from error
            self._key = None
            self.trust.read()
            self.renewed()
            self._note_expiry()

    def set_revocations(self, pem: str) -> None:
        """Replace the revocation list, given in PEM. Raises BadRequest if it cannot be used."""
        try:
            self.trust.set_revocations(pem.encode())
        except ValueError as error:
            raise BadRequest(reason=f"the list cannot be used: {error}") from error

    def _note_expiry(self) -> None:
        CERTIFICATE.set(self._tls.certificate().not_valid_after_utc.timestamp())


async def _office(request: Request) -> AgentAdmin:
    office: AgentAdmin = request.app.state.office
    return office


TheOffice = Annotated[AgentAdmin, Depends(_office)]


@router.get("/healthz")
@router.get("/v1/about")
@router.get("/v1/peer/about")
def about(office: TheOffice) -> dict[str, Any]:
    """Name, version, certificate and load of this agent."""
    return office.about()


@router.get("/v1/storages")
def storages(office: TheOffice) -> list[Declared]:
    """List the storages that this agent serves."""
    return list(office.storages.all())


@router.put("/v1/storages/{name}")
def declare(name: str, body: ServedStorageBody, office: TheOffice) -> Declared:
    """Serve one more storage."""
    return office.storages.declare(name, body.path, body.grade)


@router.delete("/v1/storages/{name}")
def remove(name: str, office: TheOffice) -> dict[str, Any]:
    """Stop serving a storage."""
    office.storages.remove(name)
    return {}


@router.put("/v1/revocations")
def revocations(body: RevocationsBody, office: TheOffice) -> dict[str, Any]:
    """Replace the revocation list: its certificates are refused from now on."""
    office.set_revocations(body.revocations)
    return {}


@router.post("/v1/renewal")
def renewal(office: TheOffice) -> dict[str, str]:
    """Return a certificate request with a new key."""
    return {"request": office.ask_for_certificate()}


@router.put("/v1/certificate")
def certificate(body: RenewedCertificateBody, office: TheOffice) -> dict[str, Any]:
    """Use the new certificate from now on."""
    office.take_certificate(body)
    return {}
