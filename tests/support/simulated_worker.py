"""The worker on a toy host whose world lies in a file: for tests only, started by simulated_vmferry.py.

Files in the folder TEST_SITE steer it: `hold-CALL` makes the host stand still in that call while it exists,
`fail-CALL` makes it refuse, `break-CALL` makes it raise what nobody foresaw.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.errors import HostRefused
from vmferry.hosts.simulator.driver import InFile, SimulatedHost, World
from vmferry.model import FencingToken
from vmferry.process import state
from vmferry.server import worker

SITE = Path(os.environ["TEST_SITE"])


class SteeredHost(SimulatedHost):
    """Stands still outside the world's lock, so that others can look at the world meanwhile."""

    @contextmanager
    def _look(self, call: str) -> Iterator[World]:
        steer(call)
        with super()._look(call) as world:
            yield world

    @contextmanager
    def _act(self, call: str) -> Iterator[tuple[World, Callable[[], None]]]:
        steer(call)
        with super()._act(call) as found:
            yield found


class SteeredHosts:
    def open(self, connect: str, token: FencingToken | None = None) -> SteeredHost:
        return SteeredHost(InFile(SITE / "world"), token)


def steer(call: str) -> None:
    call = call.replace(" ", "-")
    while (SITE / f"hold-{call}").exists():
        (SITE / f"held-{call}").touch()
        time.sleep(0.02)
    if (SITE / f"fail-{call}").exists():
        raise HostRefused(host="memory", action=call, reason="the test says so")
    if (SITE / f"break-{call}").exists():
        raise RuntimeError("a bug")


if __name__ == "__main__":
    state.home = lambda: SITE / "home"
    worker.run(hosts_for=lambda _: SteeredHosts())
