"""The end of a live migration, as the two sides tell of it."""

from __future__ import annotations

import pytest
from tests.support.crash_matrix import assert_kept, new
from tests.support.worlds import Scenario

from vmferry.hosts.simulator.driver import SimulatedHost
from vmferry.model import JobState, Power, Technology

AWAY = Scenario(Technology.LIVE_RELOCATION, Power.RUNNING)


def test_a_guest_whose_arrival_is_told_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's end at the source is seen before libvirt has told the other side; the source's power() waits for it."""
    order: list[str] = []
    power, arrived = SimulatedHost.power, SimulatedHost.arrived

    def looks_at_power(self: SimulatedHost, uuid: str) -> Power:
        order.append("power")
        return power(self, uuid)

    def is_told_late(self: SimulatedHost, uuid: str) -> bool:
        order.append("arrived")
        return order[-3:] == ["arrived", "power", "arrived"] and arrived(self, uuid)

    monkeypatch.setattr(SimulatedHost, "power", looks_at_power)
    monkeypatch.setattr(SimulatedHost, "arrived", is_told_late)
    bench = new(AWAY)
    assert assert_kept(bench, "late") is JobState.DONE
    assert order.count("arrived") == 2
