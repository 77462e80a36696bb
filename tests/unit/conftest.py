"""Shared by the tests of command, worker and API; and a PostgreSQL for those of records."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.postgres import Cluster, cluster
from tests.support.simulated_site import Site
from tests.support.worlds import quick_folder


@pytest.fixture(autouse=True)
def _saved_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy host saves a guest faster than real ones are asked how far they are."""
    monkeypatch.setattr("vmferry.migration.steps.memory_stream.POSITION_POLL_S", 0.0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """One VM on /san1 that runs, one that is off, and the real command with a worker of its own."""
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    """A PostgreSQL for all tests of this process. Skips where none is installed."""
    with quick_folder() as folder:
        folder.chmod(0o755)  # for the server's user
        with cluster(folder) as made:
            yield made


@pytest.fixture
def records(server: Cluster) -> str:
    """An empty database of the test's own, by its URL."""
    return server.database(f"test_{secrets.token_hex(6)}")
