"""The two ends of a tunnel in processes of their own, which may be in networks of their own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from tests.support.shaped_links import Link
from tests.support.tunnels import context

from vmferry.tunnel import Ending, Tickets, TunnelClient, TunnelPeer, TunnelServer, TunnelTimeouts

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Ends:
    """The end that calls, and the one that is called; each tells a line of what it knows."""

    near: subprocess.Popen[str]
    far: subprocess.Popen[str]

    @property
    def pids(self) -> list[int]:
        return [self.near.pid, self.far.pid]

    def ending(self) -> dict[str, Any]:
        """Of the next connection that has ended, as the near end saw it."""
        return dict(_told(self.near))


@contextmanager
def tunnel_between(link: Link, here: Path, there: Path, keys: Path, quiet_s: float = 30.0) -> Iterator[Ends]:
    """A tunnel from the socket `here` to the socket `there`."""
    with _end(link.far, "--far", there, keys, quiet_s) as far:
        port, ticket = _told(far)
        with _end(link.near, "--near", here, keys, quiet_s, link.far_address, port, ticket) as near:
            assert _told(near) == "ready"
            yield Ends(near, far)


@contextmanager
def _end(inside: tuple[str, ...], *words: object) -> Iterator[subprocess.Popen[str]]:
    """It ends with its standard input, so with this process at the latest."""
    command = [*inside, sys.executable, "-m", "tests.support.tunnel_ends", *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            yield child
        finally:
            assert child.stdin
            child.stdin.close()


def _told(child: subprocess.Popen[str]) -> Any:
    assert child.stdout
    return json.loads(child.stdout.readline())


def _tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def _ended(ending: Ending) -> None:
    reason = str(ending.error) if ending.error else None
    _tell({"whole": ending.whole, "reason": reason, "plain": ending.sent.plain, "wire": ending.sent.wire})


def _far(there: str, keys: str, quiet_s: str) -> None:
    tickets = Tickets()
    made = context(Path(keys), "server")
    with TunnelServer(("0.0.0.0", 0), made, tickets, patience=TunnelTimeouts(float(quiet_s))) as server:
        _tell([server.port, tickets.issue(Path(there), 3600, None)])
        sys.stdin.read()


def _near(here: str, keys: str, quiet_s: str, host: str, port: str, ticket: str) -> None:
    peer, made = TunnelPeer(host, int(port), ticket, named="localhost"), context(Path(keys), "client")
    with TunnelClient(Path(here), peer, made, _ended, TunnelTimeouts(float(quiet_s))):
        _tell("ready")
        sys.stdin.read()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    parser = argparse.ArgumentParser()
    parser.add_argument("--far", nargs=3)
    parser.add_argument("--near", nargs=6)
    asked = parser.parse_args()
    if asked.far:
        _far(*asked.far)
    else:
        _near(*asked.near)
