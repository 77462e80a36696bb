"""Streams between two hosts' agents, over mutual TLS: live migration, saved memory, NBD, libvirt's own client.

A unix socket on one host, a unix socket on the other, and what passes is compressed where that makes it arrive
sooner:

    ticket = tickets.issue(Path("/run/.../libvirt-sock"), seconds=60)     # on the host that is called
    TunnelServer(("0.0.0.0", port), context, tickets)
    TunnelClient(Path("/run/.../there"), Peer(host, port, ticket), context)     # on the host that calls
"""

from vmferry.tunnel.client import TunnelClient, TunnelPeer
from vmferry.tunnel.connection import Ending, TunnelTimeouts
from vmferry.tunnel.sender import Count
from vmferry.tunnel.server import TunnelServer
from vmferry.tunnel.tickets import Tickets

__all__ = ["Count", "Ending", "Tickets", "TunnelClient", "TunnelPeer", "TunnelServer", "TunnelTimeouts"]
