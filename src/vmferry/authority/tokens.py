"""A one-time token to join: the fingerprint of the agent's certificate, and a secret that nobody else knows."""

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
    """A token to join: made where the agent runs, carried by a person, used by the manager."""

    fingerprint: bytes
    """SHA-256 of the agent's certificate (DER): so the manager trusts no one on first use."""
    secret: bytes

    @classmethod
    def make(cls, certificate_der: bytes) -> Self:
        return cls(hashlib.sha256(certificate_der).digest(), secrets.token_bytes(_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a token. Raises UsageError."""
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
    """Return the SHA-256 that is kept of a secret of 256 random bits; against guessing, a slow hash adds nothing."""
    return hashlib.sha256(secret).hexdigest()
