"""Where a manager works: alone on a folder, or as one of several on a PostgreSQL database."""

from __future__ import annotations

import platform
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmferry.durable import create

ALONE = "worker"
"""The manager of a state folder of its own."""
MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True)
class ManagerIdentity:
    """What a manager calls itself, and where its records and its files lie."""

    folder: Path
    """The manager's own, by an absolute path: socket, log, lock, transfers."""
    ground: Path
    """Of all managers of this machine that share the records: bookmarks of jobs, and the fence of its host."""
    records: str
    """The database of jobs and transfers, by its URL."""
    manager: str
    machine: str | None
    """This machine; None for a manager that is alone, since then all jobs are here."""

    @property
    def alone(self) -> bool:
        return self.machine is None

    @property
    def environment(self) -> dict[str, str]:
        """What leads every vmferry command here."""
        if self.alone:
            return {"VMFERRY_STATE": str(self.folder)}
        return {"VMFERRY_STATE": self.records, "VMFERRY_RUNTIME": str(self.folder)}

    @staticmethod
    def at(folder: Path) -> ManagerIdentity:
        """Of a manager that shares its records with nobody."""
        return ManagerIdentity(folder, folder, f"sqlite:///{folder / 'vmferry.db'}", ALONE, None)

    @staticmethod
    def among(folder: Path, ground: Path, records: str) -> ManagerIdentity:
        """Of one of several managers; its name is made once and stays with its folder, which must exist."""
        return ManagerIdentity(folder, ground, records, _name(folder / "manager"), _machine())

    def reach(self, *hosts: str) -> str | None:
        """The machine whose managers alone can act there: a libvirt URI without a host is another host elsewhere."""
        return self.machine if any(is_local(host) for host in hosts) else None


def is_local(name: str) -> bool:
    """Is a host, or what is named after one, another one on each machine? Such a name ends with ://, a path."""
    uri = name.rpartition(" ")[2]
    return "://" in uri and not uri.partition("://")[2].partition("/")[0]


def _name(file: Path) -> str:
    """Durable before it is used, since jobs are recorded under it; of two processes that make one, one does."""
    if not file.exists():
        with suppress(FileExistsError):
            create(file, f"{platform.node()}-{secrets.token_hex(4)}\n".encode())
    return file.read_text().strip()


def _machine() -> str:
    try:
        return MACHINE_ID.read_text().strip() or platform.node()
    except OSError:
        return platform.node()
