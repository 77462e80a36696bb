"""The handshake of a tunnel's connection: the caller shows a ticket, the server accepts it or says why not.

    caller:  magic (8 bytes) | version (1) | quiet_ms (4) | length of the ticket (1) | ticket
    answer:  magic (8 bytes) | version (1) | quiet_ms (4) | answer (1)

Each side says after how many milliseconds of silence it takes the other for gone. The magic, the version's place
and the answer "another version" stay in all versions, so that peers of different ones understand why they part.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

from vmferry.errors import TunnelRefused

MAGIC = b"vmferry\x00"
VERSION = 2
_WORDS = struct.Struct("!8sBIB")
LONGEST_TICKET = 64
LEAST_QUIET_S = 0.1


class Answer(IntEnum):
    """The server's answer to a ticket."""

    WELCOME = 0
    UNKNOWN = 1
    VERSION = 2
    ABSENT = 3


_REASONS = {
    Answer.UNKNOWN: "the ticket is unknown there, was used up, has expired or was withdrawn",
    Answer.VERSION: "it speaks another version of the tunnel: let both hosts run the same vmferry",
    Answer.ABSENT: "nothing listens there at the place that the ticket is for",
}


@dataclass(frozen=True, slots=True)
class Handshake:
    """A caller's ticket, and the seconds of silence after which the caller gives this side up."""

    ticket: str
    quiet_s: float


def request(link: socket.socket, peer: str, ticket: str, quiet_s: float, deadline: float) -> float:
    """Show the ticket. Return the seconds of silence after which the peer gives up. Raises TunnelRefused, OSError."""
    shown = ticket.encode()
    link.settimeout(_left_s(deadline))
    link.sendall(_WORDS.pack(MAGIC, VERSION, _ms(quiet_s), len(shown)) + shown)
    magic, version, quiet_ms, number = _WORDS.unpack(_exactly(link, _WORDS.size, deadline))
    if magic != MAGIC:
        raise TunnelRefused(peer=peer, reason="it is no tunnel of vmferry")
    if version != VERSION or number == Answer.VERSION:
        raise TunnelRefused(peer=peer, reason=_REASONS[Answer.VERSION])
    if number != Answer.WELCOME:
        known = number in _REASONS
        raise TunnelRefused(peer=peer, reason=_REASONS[Answer(number)] if known else f"its answer was {number}")
    return _quiet_s(quiet_ms)


def accept(link: socket.socket, peer: str, quiet_s: float, deadline: float) -> Handshake:
    """Read a caller's ticket; answer a caller of another version that it is. Raises TunnelRefused, OSError."""
    magic, version, quiet_ms, length = _WORDS.unpack(_exactly(link, _WORDS.size, deadline))
    if magic != MAGIC:
        raise TunnelRefused(peer=peer, reason="it did not speak as a tunnel of vmferry does")
    if version != VERSION:
        reply(link, Answer.VERSION, quiet_s)
        raise TunnelRefused(peer=peer, reason=f"it speaks version {version} of the tunnel, this host {VERSION}")
    if not 0 < length <= LONGEST_TICKET:
        raise TunnelRefused(peer=peer, reason=f"its ticket had {length} bytes")
    ticket = _exactly(link, length, deadline).decode("ascii", "replace")
    return Handshake(ticket, _quiet_s(quiet_ms))


def reply(link: socket.socket, answer: Answer, quiet_s: float) -> None:
    """Send the answer to a caller's ticket. Raises OSError."""
    link.sendall(_WORDS.pack(MAGIC, VERSION, _ms(quiet_s), answer))


def _exactly(link: socket.socket, count: int, deadline: float) -> bytes:
    """Receive `count` bytes before the deadline, however slowly they come. Raises OSError."""
    got = b""
    while len(got) < count:
        link.settimeout(_left_s(deadline))
        more = link.recv(count - len(got))
        if not more:
            raise ConnectionResetError("the peer hung up before it had said who it is")
        got += more
    return got


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the peer was too slow to say who it is")
    return left


def _ms(quiet_s: float) -> int:
    return min(round(quiet_s * 1000), 0xFFFFFFFF)


def _quiet_s(quiet_ms: int) -> float:
    """Return the peer's limit of silence in seconds, with a lower bound: no peer can demand a flood of pings."""
    return max(LEAST_QUIET_S, quiet_ms / 1000)
