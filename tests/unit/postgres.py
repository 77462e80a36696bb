"""A PostgreSQL of a test's own: below its folder, on a unix socket there, gone with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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
    """A server that was started. Its processes end with `stop`, by the id in its own file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._bin = PROGRAMS[-1]

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
        self._run("pg_ctl", "start", "--wait", f"--log={self.folder / 'log'}", f"--timeout={ENDS_S}")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}", f"--timeout={ENDS_S}")

    def restart(self) -> None:
        """As after a crash of it."""
        self.stop()
        self.start()

    def database(self, name: str) -> str:
        """A new, empty one; returns its URL."""
        self._run("createdb", f"--host={self.folder}", f"--username={USER}", name)
        return f"postgresql://{USER}@/{name}?host={self.folder}"

    def _run(self, program: str, *args: str) -> None:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGDATA": str(self._data)}
        subprocess.run(
            [str(self._bin / program), *args],
            check=True,
            env=environment,
            cwd=self.folder,
            user=USER if os.geteuid() == 0 else None,
            group=USER if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=2 * ENDS_S,
        )


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A server below that folder, which its user must be able to reach. Skips where there is none installed."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    made = Cluster(folder / "postgres")
    made.make()
    try:
        yield made
    finally:
        made.stop()
