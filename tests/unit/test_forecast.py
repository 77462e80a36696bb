"""How a pause is forecast, and how fast the memory of a running guest is best written."""

from __future__ import annotations

import pytest

from vmferry.migration.forecast import KEEPS_UP, SAVE_LEAST_BYTES_S, SAVE_LONGEST_S, pause_s, save_bytes_s
from vmferry.model import Technology

GIB = 1 << 30
RATE = 250e6


def paused(technology: Technology = Technology.QUICK_RELOCATION, **told: float) -> float:
    given = {"remaining_bytes": 1 << 20, "rate_bytes_s": RATE, "memory_bytes": GIB, "disks": 2} | told
    return pause_s(technology, **given)  # type: ignore[arg-type] # each by its own name


def test_a_guest_that_writes_nothing_is_saved_slowly_but_not_for_ever() -> None:
    assert save_bytes_s(GIB // 4, 0, RATE) == SAVE_LEAST_BYTES_S
    assert 64 * GIB / save_bytes_s(64 * GIB, 0, RATE) == pytest.approx(SAVE_LONGEST_S)


def test_the_more_a_guest_writes_the_faster_it_is_saved() -> None:
    paces = [save_bytes_s(GIB, growth, RATE) for growth in (0, 2e6, 20e6, 200e6)]
    assert paces == sorted(paces)
    assert paces[-1] > paces[0]


@pytest.mark.parametrize("growth", [2e6, 20e6, 100e6])
def test_no_other_pace_promises_a_shorter_pause(growth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    best = save_bytes_s(GIB, growth, RATE)
    promised = paused(Technology.QUICK, growth_bytes_s=growth)
    for other in (best / 2, best * 0.9, best * 1.1, best * 2):
        monkeypatch.setattr("vmferry.migration.forecast.save_bytes_s", lambda *_, pace=other: pace)
        assert paused(Technology.QUICK, growth_bytes_s=growth) >= promised - 1e-6


def test_memory_is_written_no_faster_than_it_can_be_carried() -> None:
    assert save_bytes_s(GIB, 20e6, RATE, 12e6) == pytest.approx(KEEPS_UP * 12e6)


def test_memory_that_is_carried_while_the_guest_runs_is_not_in_the_pause() -> None:
    slow = paused(carry_bytes_s=12e6)
    assert slow < paused(carry_bytes_s=12e6, memory_bytes=2 * GIB)  # it is loaded all the same
    assert slow < GIB / 12e6 / 10
    assert paused(carry_bytes_s=12e6, precopy=False) > GIB / 12e6 / 2


def test_a_guest_without_kvm_stands_while_its_memory_is_written() -> None:
    assert paused(Technology.QUICK, precopy=False) > paused(Technology.QUICK) + 1.0
