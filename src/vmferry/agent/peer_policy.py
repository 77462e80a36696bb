"""Which peers this agent answers: checked at every request, so that a revoked or expired peer is refused at once."""

from __future__ import annotations

import time
from threading import Lock

from vmferry.authority import Peer, Role, TlsFolder

WHO_MAY = {"/v1/peer/": frozenset(Role), "/v1/": frozenset({Role.MANAGER}), "/healthz": frozenset(Role)}
"""The first that a path begins with holds; no other path is there."""


class PeerPolicy:
    """This agent's rules for peers: its certificates, the revocation list, and the roles that each path allows."""

    def __init__(self, tls: TlsFolder) -> None:
        self._tls = tls
        self._lock = Lock()
        self.read()

    @property
    def revocations(self) -> int:
        """The number of the revocation list in force."""
        return self._number

    @property
    def due(self) -> bool:
        """Should this agent's certificate be renewed?"""
        return time.time() > self._due_at

    def set_revocations(self, crl: bytes) -> None:
        """Replace the revocation list; it is in force, and durable, when this returns. Raises ValueError."""
        with self._lock:
            self._tls.set_revocations(crl)
            self.read()

    def against(self, peer: Peer | None, path: str) -> str | None:
        """Return the reason to refuse the peer this path, or None to answer."""
        if peer is None:
            return "its certificate does not say who it is"
        if peer.serial in self._revoked:
            return f"the certificate of {peer.role} {peer.name} was revoked"
        if peer.expires < time.time():
            return f"the certificate of {peer.role} {peer.name} has expired"
        allowed = next((roles for start, roles in WHO_MAY.items() if path.startswith(start)), frozenset[Role]())
        if peer.role not in allowed:
            return f"{peer.role} {peer.name} may not ask for that"
        return None

    def read(self) -> None:
        """Read the revocation list and the time of renewal again from the files."""
        self._revoked = self._tls.revoked()
        self._number = self._tls.revocations_number()
        self._due_at = self._tls.due_at().timestamp()
