"""Forecasts learn: what a host's finished moves say of the next one's pause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.jobs import ended, request, worker, world_of
from tests.support.worlds import Scenario, make_plan, make_world

from vmferry.manager.store.jobs import now
from vmferry.migration.pause_history import LEAST, MOST, pause_factor
from vmferry.model import JobState, Plan, Power, Receipt, Technology

QUICK = replace(make_plan(make_world(), Scenario(Technology.QUICK, Power.RUNNING)), to=None, pause_factor=1.0)


def past(*moves: tuple[float, float], plan: Plan = QUICK) -> list[tuple[Plan, Receipt]]:
    """Finished moves, newest first, by what was forecast and what was measured."""
    return [
        (plan, Receipt("abcd2345", "guest", "quick", (), (), forecast_s, took_s, True, 1, now()))
        for forecast_s, took_s in moves
    ]


@pytest.mark.parametrize(
    ("moves", "factor"),
    [
        ([], 1.0),
        ([(1.0, 3.0)], 2.0),  # one move says little: half way from what is assumed
        ([(1.0, 3.0), (1.0, 3.0)], 3.0),
        ([(1.0, 3.0), (1.0, 2.0), (1.0, 2.5)], 2.25),
        ([(1.0, 2.0)] * 5 + [(1.0, 50.0)] * 9, 2.0),  # what is long ago no longer counts
        ([(1.0, 100.0)] * 3, MOST),
        ([(1.0, 0.01)] * 3, LEAST),
        ([(0.0, 1.0), (1.0, 0.0)], 1.0),
    ],
)
def test_the_middle_of_the_newest_moves_is_the_factor(moves: list[tuple[float, float]], factor: float) -> None:
    assert pause_factor(past(*moves), Technology.QUICK, None) == factor


def test_only_moves_of_the_same_kind_between_the_same_hosts_count() -> None:
    known = past((1.0, 3.0), (1.0, 3.0))
    assert pause_factor(known, Technology.LIVE, None) == 1.0
    assert pause_factor(known, Technology.QUICK, "other") == 1.0


def test_what_a_forecast_had_learned_is_not_learned_twice() -> None:
    known = past((3.0, 3.0), (3.0, 3.0), (3.0, 3.0), plan=replace(QUICK, pause_factor=3.0))
    assert pause_factor(known, Technology.QUICK, None) == 3.0


def test_a_job_is_planned_with_what_the_ones_before_it_took(tmp_path: Path) -> None:
    """The toy host stands for no time at all: three moves teach that, and the fourth is forecast to be short."""
    with worker(tmp_path, world_of(1)) as jobs:
        wanted = request(via="quick")
        first = jobs.plan(wanted)
        for storage in ("/san2", "/san1", "/san2"):
            view = jobs.submit(replace(wanted, path=Path(storage)))
            assert ended(jobs, view.id).state is JobState.DONE
        learned = jobs.plan(replace(wanted, path=Path("/san1")))
    assert (first.pause_factor, learned.pause_factor) == (1.0, LEAST)
    assert learned.pause_forecast_s == pytest.approx(first.pause_forecast_s * LEAST)
