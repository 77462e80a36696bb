"""The agent as a process: it waits, joins, serves, is watched, and leaves when it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from vmferry.authority import TlsFolder
from vmferry.errors import HostUnreachable, UsageError
from vmferry.hosts.remote.join import split_address
from vmferry.lab.programs import wait_for
from vmferry.manager.fleet.service import Fleet
from vmferry.model.fleet import HostState

pytestmark = pytest.mark.slow

VMFERRY = str(Path(sys.executable).with_name("vmferry"))
DEADLINE_S = 60


class Process:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "agent"
        self.out, self.log = folder / "out", folder / "log"
        self.process = self.start()

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        words = [VMFERRY, "agent", "--state", str(self.state), "--listen", "127.0.0.1:0"]
        words += ["--connect", "test:///default", "--metrics", "127.0.0.1:0", *more]
        with self.out.open("ab") as out, self.log.open("ab") as log:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=log)

    def until_says(self, event: str) -> dict[str, str]:
        """The newest line of the log with that event."""

        def said() -> dict[str, str] | None:
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
            return next((line for line in reversed(lines) if line["event"] == event), None)

        found = wait_for(said, f"the agent to say {event}", DEADLINE_S, log=self.log)
        assert found is not None
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.close()


def test_it_waits_joins_serves_and_leaves(agent: Process) -> None:
    address = agent.until_says("waiting to join")["address"]
    watched = httpx.get(f"http://{agent.until_says('metrics')['address']}/metrics")
    assert "vmferry_operations_running 0.0" in watched.text
    state = agent.folder / "manager"
    state.mkdir()
    fleet = Fleet(state, f"sqlite:///{state}/vmferry.db")
    token = agent.out.read_text().removeprefix("token: ").strip()
    assert fleet.add("host1", address, token).state is HostState.ANSWERS
    assert token not in agent.log.read_text()

    second = agent.start()
    assert second.wait(DEADLINE_S) == 1
    assert "already serves" in agent.log.read_text()
    assert fleet.show("host1").connect == "test:///default"

    os.kill(agent.process.pid, signal.SIGTERM)
    assert agent.process.wait(DEADLINE_S) == 0
    agent.until_says("left")
    assert fleet.show("host1").state is HostState.AWAY
    fleet.close()


def test_one_that_is_frozen_is_away_and_nobody_hangs(agent: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    address = agent.until_says("waiting to join")["address"]
    state = agent.folder / "manager"
    state.mkdir()
    fleet = Fleet(state, f"sqlite:///{state}/vmferry.db")
    fleet.add("host1", address, agent.out.read_text().removeprefix("token: ").strip())
    monkeypatch.setattr("vmferry.hosts.remote.client.SILENCE_S", 1.0)
    link = fleet.find("host1")
    assert link is not None
    link.close()
    os.kill(agent.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostUnreachable, match="no word from"):
            link.ask("GET", "about")
    finally:
        os.kill(agent.process.pid, signal.SIGCONT)
    wait_for(lambda: fleet.show("host1").state is HostState.ANSWERS, "it to answer again", DEADLINE_S)
    fleet.close()


def test_one_that_waits_to_join_leaves_when_it_is_told_to(agent: Process) -> None:
    agent.until_says("waiting to join")
    os.kill(agent.process.pid, signal.SIGTERM)
    assert agent.process.wait(DEADLINE_S) == 0
    assert not TlsFolder(agent.state).there


def test_metrics_are_not_offered_to_the_network(tmp_path: Path) -> None:
    from vmferry.agent.process import Options, run

    with pytest.raises(UsageError, match="loopback only"):
        run(Options(tmp_path, split_address("127.0.0.1:0"), "test:///default", ("0.0.0.0", 9643)))
