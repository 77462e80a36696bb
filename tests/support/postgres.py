"""A PostgreSQL of a test's own: below its folder, on a unix socket there, gone with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmferry.lab.programs import wait_for

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
USER = "postgres"
"""The server refuses to run as root."""
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",  # as a careless server may have it: ours is asked for
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # in its own folder: a crash leaves nothing in /dev/shm
    "log_min_messages": "warning",
}
ENDS_S = 60


class Cluster:
    """A server that was started. It ends with `stop`, and with the process that started it, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._bin = PROGRAMS[-1]
        self._server: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        self.folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER, USER)
        self._run("initdb", "--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--locale=C")
        settings = SETTINGS | {"unix_socket_directories": str(self.folder)}
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.write(lines)
        self.start()

    def start(self) -> None:
        program = str(self._bin / "postgres")
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(["setpriv", "--pdeathsig", "QUIT", program], stderr=log, **self._how())
        wait_for(self._answers, "PostgreSQL to answer", ENDS_S)

    def stop(self) -> None:
        """As a crash ends it: nothing is written any more."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(ENDS_S)

    def restart(self) -> None:
        """As after a crash of it."""
        self.stop()
        self.start()

    def database(self, name: str) -> str:
        """A new, empty one; returns its URL."""
        self._run("createdb", f"--host={self.folder}", f"--username={USER}", name)
        return f"postgresql://{USER}@/{name}?host={self.folder}"

    def _answers(self) -> bool:
        asked = [str(self._bin / "pg_isready"), f"--host={self.folder}", f"--username={USER}"]
        return subprocess.run(asked, check=False, timeout=ENDS_S, **self._how()).returncode == 0

    def _run(self, program: str, *args: str) -> None:
        subprocess.run([str(self._bin / program), *args], check=True, timeout=2 * ENDS_S, **self._how())

    def _how(self) -> dict[str, Any]:
        other = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGDATA": str(self._data)}
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        return {"env": environment, "cwd": self.folder, **quiet, **other}


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A server below that folder, which its user must be able to reach. Skips where there is none installed."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    made = Cluster(folder / "postgres")
    try:
        made.make()
        yield made
    finally:
        made.stop()
