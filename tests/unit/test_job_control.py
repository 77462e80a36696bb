"""What an operator reads of a job while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.records import job
from tests.support.worlds import Scenario, make_plan, make_world

from vmferry.hosts.simulator.driver import InMemory, SimulatedHosts
from vmferry.manager.jobs.active import ActiveJobs
from vmferry.manager.jobs.control import ProgressBoard, Stopped
from vmferry.manager.limits.shared import Limits
from vmferry.manager.store import Store
from vmferry.model import DiskProgress, FencingToken, Lost, Power, Technology


def test_a_job_says_that_it_waits_for_a_host_until_it_goes_on() -> None:
    board = ProgressBoard(make_plan(make_world(), Scenario(Technology.LIVE, Power.RUNNING)), lambda: None)
    board.show(now="copying the base", step=4)
    board.waits("host1 does not answer")
    board.waits("host1 does not answer (again)")
    assert board.progress.now == "host1 does not answer (again)"
    board.disk(DiskProgress("vda", 1 << 20, 2 << 20))
    assert board.progress.now == "copying the base"
    board.show(now="the guest writes as fast as the mirror copies")
    board.disk(DiskProgress("vda", 2 << 20, 2 << 20))
    assert board.progress.now == "the guest writes as fast as the mirror copies"


def test_no_desk_is_opened_for_an_epoch_that_ended_before_there_was_one_to_stop(tmp_path: Path) -> None:
    """Else a job whose host was declared lost just then would wait for that host for ever."""
    store = Store(f"sqlite:///{tmp_path / 'vmferry.db'}")
    limits = Limits(store, SimulatedHosts(InMemory(make_world())))
    read = store.add(job("abcd2345"))
    store.declare_lost(read.id, Lost.SOURCE, lambda row, journal, facts: None)
    active = ActiveJobs()
    active.stop(read.id)
    with pytest.raises(Stopped):
        active.open(store, FencingToken(read.id, read.epoch), limits)
    assert active.open(store, FencingToken(read.id, store.row(read.id).epoch), limits).throttle is not None
    limits.close()
    store.close()
