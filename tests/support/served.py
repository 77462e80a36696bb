"""vmferry's agent beside a lab's libvirtd, as a process of its own: for tests."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vmferry.lab.programs import wait_for
from vmferry.lab.vmferry_command import COMMAND


class ServedHost:
    """`vmferry agent` with a state folder of its own; ends with the with block, by its own id."""

    def __init__(
        self,
        state: Path,
        uri: str,
        inside: Sequence[str] = (),
        listen: str = "127.0.0.1:0",
        options: Sequence[str] = (),
    ) -> None:
        """`inside`: words before the command that take it to another network, say; `options`: further ones."""
        self.state = state
        self._uri = uri
        self._inside = tuple(inside)
        self._listen = listen
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        return (self.state / "address").read_text().strip()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self.state.with_name(f"{self.state.name}.log")

    def start(self) -> None:
        """Start it, on the port that it had before; it listens when this returns."""
        listen = self.address if (self.state / "address").exists() else self._listen
        (self.state / "address").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            words = [*self._inside, *COMMAND, "agent", "--state", str(self.state)]
            self._process = subprocess.Popen(
                [*words, "--listen", listen, "--connect", self._uri, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        wait_for((self.state / "address").exists, "the agent to listen", 60, log=self.log)

    def token(self) -> str:
        """A token to join with."""
        words = [*COMMAND, "agent", "--state", str(self.state), "--new-token"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM, and wait. Returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(30)
        self._process = None
        return code
