"""A state folder, a toy host and the real command, each test its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from vmferry.hosts.simulator.driver import InFile, World
from vmferry.hosts.simulator.world import add_machine
from vmferry.model import Power

HOST = "memory:///"
COMMAND = (sys.executable, str(Path(__file__).with_name("simulated_vmferry.py")))
NAME = "büro [x]"
UUID = "11111111-2222-3333-4444-555555555555"
DEADLINE_S = 60.0


def until(what: Callable[[], object], says: str = "it never became so") -> None:
    """Poll until it is true; a lookup that is not possible yet is not true yet."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            if what():
                return
        time.sleep(0.02)
    raise AssertionError(says)


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.world_file = InFile(folder / "world")
        self.env = os.environ | {"TEST_SITE": str(folder), "VMFERRY_STATE": str(self.state), "PYTHONUTF8": "1"}
        for name in ("COLUMNS", "LIBVIRT_DEFAULT_URI"):
            self.env.pop(name, None)
        self.seen: set[int] = set()
        with self.world_file.here() as world:
            disks = {"vda": ((Path("/san1/vda.img"), "raw"),), "vdb": ((Path("/san1/vdb.qcow2"), "qcow2"),)}
            add_machine(world, NAME, UUID, disks)
            add_machine(world, "off", UUID.replace("1", "9"), {"vda": ((Path("/san1/off.img"), "raw"),)}, Power.OFF)

    # -- the command

    def start(self, *args: str, **how: Any) -> subprocess.Popen[str]:
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        return subprocess.Popen([*COMMAND, *args], env=self.env, text=True, **how)

    def run(self, *args: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """The command's end; fails the test if it is not that exit code."""
        return self.ended(self.start(*args), code)

    def ended(self, process: subprocess.Popen[str], code: int | None = 0) -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=DEADLINE_S)
        if code is not None and process.returncode != code:
            raise AssertionError(f"ended with {process.returncode}, not {code}:\n{out}\n{err}\n{self.log()}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def json(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", code=code).stdout)

    def submit(self, *args: str) -> str:
        """A job in the background; returns its id."""
        return self.run("migrate-storage", NAME, "--path", "/san2", "--detach", *args).stdout.strip()

    # -- the toy host

    def steer(self, what: str) -> Path:
        file = self.folder / what
        file.touch()
        return file

    def hold(self, call: str) -> Path:
        return self.steer(f"hold-{call}")

    def until_held(self, call: str) -> None:
        until((self.folder / f"held-{call}").exists, f"the host never came to {call}")

    def world(self) -> World:
        with self.world_file.here() as world:
            return world

    def lies_on(self) -> set[str]:
        """The storages that the VM runs on."""
        return {str(image.path).split("/")[1] for image in self.world().machine(UUID).disks.values()}

    # -- the worker

    def worker(self) -> int:
        pid = int((self.state / "worker.pid").read_text())
        self.seen.add(pid)
        return pid

    def kill_worker(self) -> int:
        pid = self.worker()
        os.kill(pid, signal.SIGKILL)
        return pid

    def http(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.state / "worker.sock"))
        return httpx.Client(transport=transport, base_url="http://worker/v1/", timeout=30)

    def log(self) -> str:
        with suppress(FileNotFoundError):
            return (self.state / "worker.log").read_text()
        return "no log"

    def close(self) -> None:
        for file in self.folder.glob("hold-*"):
            file.unlink()
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            self.kill_worker()
