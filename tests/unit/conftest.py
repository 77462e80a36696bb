"""Shared by the tests of command, worker and API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """One VM on /san1 that runs, one that is off, and the real command with a worker of its own."""
    made = Site(tmp_path)
    yield made
    made.close()
