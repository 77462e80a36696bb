"""Identity in a certificate: a role and a name in its subjectAltName, so that no address has to be trusted.

vmferry reads `urn:vmferry:ROLE:NAME`; the DNS name NAME.ROLE.vmferry says the same to every TLS library, which
compares it with the name that the other side asked for.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vmferry.errors import UsageError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_URN = re.compile(r"urn:vmferry:([a-z]+):([a-z0-9-]{1,63})")


class Role(StrEnum):
    MANAGER = "manager"
    """May look at hosts and act on them."""
    AGENT = "agent"
    """Serves a host; other agents read from it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a connection, as identified by its certificate."""

    role: Role
    name: str
    serial: int
    expires: float
    """Unix time."""


def check_name(name: str) -> str:
    """Return the name if it can be that of a host. Raises UsageError."""
    if not _NAME.fullmatch(name):
        reason = "use up to 63 small letters, digits and hyphens, as in a DNS name"
        raise UsageError(reason=f"{name!r} cannot be the name of a host: {reason}")
    return name


def could_be_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def urn(role: Role, name: str) -> str:
    return f"urn:vmferry:{role}:{name}"


def tls_name(role: Role, name: str) -> str:
    """Return the DNS name that a TLS client asks for and compares with the certificate."""
    return f"{name}.{role}.vmferry"


def peer_of(certificate: Mapping[str, object] | None) -> Peer | None:
    """Return the peer in a verified certificate, as ssl's getpeercert() gives it; None if it is none of vmferry's."""
    if not certificate:
        return None
    names = certificate.get("subjectAltName")
    found = [_URN.fullmatch(str(value)) for kind, value in _pairs(names) if kind == "URI"]
    roles = [match for match in found if match and match[1] in list(Role)]
    if len(roles) != 1:
        return None
    expires = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return Peer(Role(roles[0][1]), roles[0][2], int(str(certificate["serialNumber"]), 16), expires)


def _pairs(names: object) -> list[tuple[str, str]]:
    return [pair for pair in names if len(pair) == 2] if isinstance(names, tuple) else []
