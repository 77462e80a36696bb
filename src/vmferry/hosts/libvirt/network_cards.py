"""The network cards of this machine, as Linux counts what passes over them."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from vmferry.model import LinkCount

CARDS = Path("/sys/class/net")
_IPV6 = Path("/proc/net/if_inet6")
_SIOCGIFADDR = 0x8915
"""See netdevice(7)."""
_MBIT = 1_000_000 // 8
GBIT_S = 125_000_000
"""1 Gbit/s, in bytes per second."""
_COUNTS = ("tx_bytes", "rx_bytes")


def link_of(address: str, capacity_bytes_s: int | None = None, cards: Path = CARDS) -> LinkCount | None:
    """Return the bytes sent and received, and the capacity, of the cards below the interface that has this address.

    `address`: an IP address or a name of this host. Below a bridge, a bond or a VLAN lie the cards that carry it; what
    guests send over them is counted too. `capacity_bytes_s`: what the cards carry together, where that is known better
    than by them. None where no interface has the address, or a card has to tell its speed and does not.
    """
    interface = _interface(address)
    if interface is None:
        return None
    below = _below(cards / interface)
    try:
        sent, received = (sum(_number(card / "statistics" / file) for card in below) for file in _COUNTS)
        speeds = [] if capacity_bytes_s else [_number(card / "speed") for card in below]
    except (OSError, ValueError):  # a card that is down, or virtual, refuses to tell its speed
        return None
    if any(speed <= 0 for speed in speeds):
        return None
    return LinkCount(sent, received, capacity_bytes_s or sum(speeds) * _MBIT)


def is_slow(address: str, capacity_bytes_s: int | None = None) -> bool | None:
    """Does the link at that address carry 1 Gbit/s or less? None where that is not known. See link_of."""
    link = link_of(address, capacity_bytes_s)
    return None if link is None else link.capacity_bytes_s <= GBIT_S


def _number(file: Path) -> int:
    return int(file.read_text())


def _below(interface: Path) -> list[Path]:
    """Return the real cards that carry an interface; the interface itself where there is none."""
    return sorted(set(_real(interface))) or [interface]


def _real(interface: Path) -> Iterator[Path]:
    if (interface / "device").exists():
        yield interface
    for lower in interface.glob("lower_*"):
        yield from _real(lower.resolve())


def _interface(address: str) -> str | None:
    """Return the name of the interface that has this address; None if none has, or it cannot be resolved."""
    with suppress(OSError):
        wanted = _resolved(address)
        return next((name for name, held in _addresses() if held in wanted), None)
    return None


@lru_cache
def _resolved(address: str) -> frozenset[object]:
    """Resolve an address or name, once: links are looked at each second. A failure is tried again. Raises OSError."""
    return frozenset(ip_address(found[4][0]) for found in socket.getaddrinfo(address, None))


def _addresses() -> Iterator[tuple[str, object]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                yield name, ip_address(answer[20:24])
    with suppress(OSError):  # no IPv6 here
        for line in _IPV6.read_text().splitlines():
            digits, *_, name = line.split()
            yield name, ip_address(bytes.fromhex(digits))
