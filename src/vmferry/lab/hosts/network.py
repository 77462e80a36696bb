"""Numbers, names and addresses on a lab's own network, which exists in the lab's namespaces only."""

from __future__ import annotations

from collections.abc import Sequence

NETWORK = "10.231.0"
MANAGER, SWITCH = "manager", "switch"
MANAGER_NUMBER = 254


def numbers(hosts: Sequence[str]) -> dict[str, int]:
    """Return the number of each node that has an address, by name."""
    return {name: number for number, name in enumerate(hosts, 1)} | {MANAGER: MANAGER_NUMBER}


def address(number: int) -> str:
    """Return the IP address of the node with this number."""
    return f"{NETWORK}.{number}"


def hardware(number: int) -> str:
    """Return the hardware address (MAC) of the node with this number."""
    return f"52:54:00:e7:00:{number:02x}"


def names(hosts: Sequence[str]) -> str:
    """Return the content of /etc/hosts of every node."""
    lines = [f"{address(number)} {name}" for name, number in numbers(hosts).items()]
    return "\n".join(["127.0.0.1 localhost", *lines]) + "\n"
