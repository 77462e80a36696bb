"""The manager's own small certificate authority, and what its certificates mean."""

from vmferry.authority.ca import Authority, Issued
from vmferry.authority.folder import TlsFolder, client_context, server_context
from vmferry.authority.keys import make_key, make_request
from vmferry.authority.peers import Peer, Role, check_name, peer_of, tls_name

__all__ = [
    "Authority",
    "Issued",
    "Peer",
    "Role",
    "TlsFolder",
    "check_name",
    "client_context",
    "make_key",
    "make_request",
    "peer_of",
    "server_context",
    "tls_name",
]
