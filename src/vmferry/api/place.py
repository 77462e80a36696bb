"""Where a worker and its clients meet: a folder with socket and log; its records lie there too, or in PostgreSQL."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vmferry.errors import StateUnusable
from vmferry.errors.system import said
from vmferry.process.state import ManagerIdentity

ALREADY_RUNNING = 75
"""What a worker exits with beside a living one (EX_TEMPFAIL): the other one answers."""
LONGEST_ADDRESS = 107
"""Bytes that a unix socket's address holds; unix(7)."""
SHARED = "postgresql"


def home() -> Path:
    """Where this user's state lies unless another place is named: /var/lib/vmferry for root, else the XDG folder."""
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
    ground: Path | None = None
    """With a database: what all its managers on this machine share."""

    @staticmethod
    def of(state: Path | str, runtime: Path | None = None) -> StateLocation:
        """Of a folder, or of a URL with the manager's folder (its own default, without one). Raises StateUnusable."""
        if "://" not in str(state):
            return StateLocation(Path(state).absolute())
        url = urlsplit(str(state))
        if url.scheme != SHARED or not url.path.strip("/"):
            named = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
            raise StateUnusable(state=named, reason=f"a database is named as {SHARED}://USER@HOST/NAME")
        ground = home() / "managers" / _key(str(state))
        return StateLocation((runtime or ground).absolute(), str(state), ground)

    @property
    def socket(self) -> Path:
        return self.state / "worker.sock"

    @property
    def log(self) -> Path:
        return self.state / "worker.log"

    def seat(self) -> ManagerIdentity:
        """What a worker here is; the folders must exist."""
        if self.records is None or self.ground is None:
            return ManagerIdentity.at(self.state)
        return ManagerIdentity.among(self.state, self.ground, self.records)

    def make(self) -> None:
        """Make the folders, for this user only; one that exists keeps its mode. Raises StateUnusable."""
        for folder in {self.state, self.ground or self.state}:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise StateUnusable(state=folder, reason=said(error)) from error
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise StateUnusable(state=folder, reason="it belongs to another user")

    def address(self) -> str:
        """What bind and connect take: the path, or a short way to it through /proc when it is too long."""
        if len(os.fsencode(self.socket)) <= LONGEST_ADDRESS:
            return str(self.socket)
        folder = os.open(self.state, os.O_PATH | os.O_DIRECTORY)  # stays open: the address lives as long
        return f"/proc/self/fd/{folder}/{self.socket.name}"


def _key(records: str) -> str:
    """The same for every way to write the same database: users and options do not matter."""
    url = urlsplit(records)
    hosts = url.netloc.rpartition("@")[2] or ",".join(parse_qs(url.query).get("host", []))
    name = url.path.strip("/")
    digest = hashlib.blake2b(f"{hosts}/{name}".encode(), digest_size=4).hexdigest()
    return f"{''.join(c if c.isalnum() else '-' for c in name)}-{digest}"
