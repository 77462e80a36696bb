"""A one-time token to join: whose certificate to expect, and a secret that is known to nobody else."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from typing import Self

from vmferry.errors import UsageError

_PREFIX = "vmferry-join-"
_BYTES = 32


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Made where the agent runs, carried by a person, used by the manager."""

    fingerprint: bytes
    """SHA-256 of the agent's certificate (DER): so the manager trusts no one on first use."""
    secret: bytes

    @classmethod
    def make(cls, certificate_der: bytes) -> Self:
        return cls(hashlib.sha256(certificate_der).digest(), secrets.token_bytes(_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises UsageError."""
        try:
            content = base64.urlsafe_b64decode(text.strip().removeprefix(_PREFIX))
        except ValueError:
            content = b""
        if not text.strip().startswith(_PREFIX) or len(content) != 2 * _BYTES:
            raise UsageError(reason="that is no whole token: copy all of what `vmferry agent --new-token` printed")
        return cls(content[:_BYTES], content[_BYTES:])

    @property
    def text(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(self.fingerprint + self.secret).decode()


def hashed(secret: bytes) -> str:
    """What is kept of a secret of 256 random bits: nobody guesses it, so a slow hash would add nothing."""
    return hashlib.sha256(secret).hexdigest()
