"""Where a manager's state lies and what it is called: in a folder, or in a PostgreSQL database that several share."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vmferry.durable import create
from vmferry.errors import StateUnusable
from vmferry.errors.system import said

ALREADY_RUNNING = 75
"""What a worker exits with beside a living one (EX_TEMPFAIL): the other one answers."""
LONGEST_ADDRESS = 107
"""Bytes that a unix socket's address holds; unix(7)."""
SHARED = "postgresql"
ALONE = "worker"
"""The manager of a state folder of its own."""
MACHINE_ID = Path("/etc/machine-id")


def home() -> Path:
    """Return the default place of this user's state: /var/lib/vmferry for root, else the XDG state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmferry")
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".local/state") / "vmferry"


@dataclass(frozen=True, slots=True)
class StateLocation:
    """A state folder, by its absolute path; or a database that managers share, and the folder of one of them."""

    state: Path
    records: str | None = None
    """The database's URL; None: the records lie in the folder."""
    shared_folder: Path | None = None
    """With a database: what all its managers on this machine share."""

    @staticmethod
    def of(state: Path | str, runtime: Path | None = None) -> StateLocation:
        """Return the location named by a folder, or by a database's URL and the manager's folder. Raises StateUnusable.

        `runtime`: that folder of a manager with a database; by default one below `home`, named after the database.
        """
        if "://" not in str(state):
            return StateLocation(Path(state).absolute())
        url = urlsplit(str(state))
        if url.scheme != SHARED or not url.path.strip("/"):
            named = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
            raise StateUnusable(state=named, reason=f"a database is named as {SHARED}://USER@HOST/NAME")
        shared_folder = home() / "managers" / _key(str(state))
        return StateLocation((runtime or shared_folder).absolute(), str(state), shared_folder)

    @property
    def socket(self) -> Path:
        return self.state / "worker.sock"

    @property
    def log(self) -> Path:
        return self.state / "worker.log"

    def identity(self) -> ManagerIdentity:
        """Return what a worker here calls itself; the folders must exist."""
        if self.records is None or self.shared_folder is None:
            return ManagerIdentity.at(self.state)
        return ManagerIdentity.among(self.state, self.shared_folder, self.records)

    def make(self) -> None:
        """Make the folders, for this user only; one that exists keeps its mode. Raises StateUnusable."""
        for folder in {self.state, self.shared_folder or self.state}:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise StateUnusable(state=folder, reason=said(error)) from error
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise StateUnusable(state=folder, reason="it belongs to another user")

    def address(self) -> str:
        """Return what bind and connect take: the socket's path, or a short way to it through /proc if it is long."""
        if len(os.fsencode(self.socket)) <= LONGEST_ADDRESS:
            return str(self.socket)
        folder = os.open(self.state, os.O_PATH | os.O_DIRECTORY)  # stays open: the address lives as long
        return f"/proc/self/fd/{folder}/{self.socket.name}"


def _key(records: str) -> str:
    """Return a folder name that is the same however a database's URL is written: users and options do not matter."""
    url = urlsplit(records)
    hosts = url.netloc.rpartition("@")[2] or ",".join(parse_qs(url.query).get("host", []))
    name = url.path.strip("/")
    digest = hashlib.blake2b(f"{hosts}/{name}".encode(), digest_size=4).hexdigest()
    return f"{''.join(c if c.isalnum() else '-' for c in name)}-{digest}"


@dataclass(frozen=True, slots=True)
class ManagerIdentity:
    """What a manager calls itself, and where its records and its files lie."""

    folder: Path
    """The manager's own, by an absolute path: socket, log, lock, transfers."""
    shared_folder: Path
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
        """Variables that make every vmferry command use this manager."""
        if self.alone:
            return {"VMFERRY_STATE": str(self.folder)}
        return {"VMFERRY_STATE": self.records, "VMFERRY_RUNTIME": str(self.folder)}

    @staticmethod
    def at(folder: Path) -> ManagerIdentity:
        """Return the identity of a manager that shares its records with nobody."""
        return ManagerIdentity(folder, folder, f"sqlite:///{folder / 'vmferry.db'}", ALONE, None)

    @staticmethod
    def among(folder: Path, shared_folder: Path, records: str) -> ManagerIdentity:
        """Return the identity of one of several managers that share a database.

        Its name is made once and stays with its folder, which must exist.
        """
        return ManagerIdentity(folder, shared_folder, records, _name(folder / "manager"), _machine())

    def reach(self, *hosts: str) -> str | None:
        """Return the machine whose managers alone can act for these hosts; None where all managers can.

        A libvirt URI without a host means another host on each machine.
        """
        return self.machine if any(is_local(host) for host in hosts) else None


def is_local(name: str) -> bool:
    """Tell whether a host's name, or one that ends with it, means another host on each machine.

    Such a name ends with a URI without a host: ://, a path.
    """
    uri = name.rpartition(" ")[2]
    return "://" in uri and not uri.partition("://")[2].partition("/")[0]


def _name(file: Path) -> str:
    """Return the manager's name from the file, made once; of two processes that make one, one does.

    It is durable before it is used, since jobs are recorded under it.
    """
    if not file.exists():
        with suppress(FileExistsError):
            create(file, f"{platform.node()}-{secrets.token_hex(4)}\n".encode())
    return file.read_text().strip()


def _machine() -> str:
    try:
        return MACHINE_ID.read_text().strip() or platform.node()
    except OSError:
        return platform.node()
