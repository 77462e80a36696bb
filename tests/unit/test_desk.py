"""What an operator reads of a job while it runs."""

from __future__ import annotations

from chaos_worlds import Scenario, make_plan, make_world

from vmferry.desk import Board
from vmferry.model import DiskProgress, Power, Technology


def test_a_job_says_that_it_waits_for_a_host_until_it_goes_on() -> None:
    board = Board(make_plan(make_world(), Scenario(Technology.LIVE, Power.RUNNING)), lambda: None)
    board.show(now="copying the base", step=4)
    board.waits("host1 does not answer")
    board.waits("host1 does not answer (again)")
    assert board.progress.now == "host1 does not answer (again)"
    board.disk(DiskProgress("vda", 1 << 20, 2 << 20))
    assert board.progress.now == "copying the base"
    board.show(now="the guest writes as fast as the mirror copies")
    board.disk(DiskProgress("vda", 2 << 20, 2 << 20))
    assert board.progress.now == "the guest writes as fast as the mirror copies"
