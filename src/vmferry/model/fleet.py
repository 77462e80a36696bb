"""The hosts and storages that a manager knows, as people see them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HostState(StrEnum):
    ANSWERS = "answers"
    AWAY = "away"
    """Its agent does not answer; `sentence` says why."""
    REVOKED = "revoked"
    """Its certificate is no longer good: nobody talks to it."""
    DIFFERS = "differs"
    """Its agent speaks another version of the protocol."""


@dataclass(frozen=True, slots=True)
class HostView:
    """A host that was added."""

    name: str
    address: str
    added: str
    """ISO 8601, UTC"""
    state: HostState
    sentence: str = ""
    version: str = ""
    hostname: str = ""
    connect: str = ""
    """The libvirt that its agent serves."""
    certificate_expires: str = ""


@dataclass(frozen=True, slots=True)
class StorageView:
    """A storage of a host."""

    name: str
    host: str
    path: str
    uuid: str
    grade: str = ""
    shared_with: tuple[str, ...] = ()
    """HOST:NAME of the same storage on other hosts."""


def host_port(host: str, port: int) -> str:
    """Return an address as people write it, IPv6 in brackets. `hosts.remote.join.split_address` takes it apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
