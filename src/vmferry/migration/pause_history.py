"""What a host's finished moves tell of the next one: how far their pauses were from what was forecast."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from vmferry.model import Plan, Receipt, Technology

LOOK_BACK = 50
"""Moves of a host that are looked at, of all technologies."""
ENOUGH = 5
"""The newest of one technology that count."""
LEAST, MOST = 0.5, 8.0
"""A factor beyond these tells of an accident, not of the machines."""


def pause_factor(past: Sequence[tuple[Plan, Receipt]], technology: Technology, to: str | None) -> float:
    """Factor by which forecasts of a pause are to be multiplied; 1.0 while nothing is known.

    `past`: finished moves from the same host, the newest first. Only those by the same technology, to the same host,
    count. The result is the median of the newest few and of 1.0, which was assumed at first: one move on a busy machine
    says little of the next.
    """
    alike = [_factor(plan, receipt) for plan, receipt in past if (plan.technology, plan.to) == (technology, to)]
    known = [factor for factor in alike if factor is not None][:ENOUGH]
    return min(MOST, max(LEAST, median([1.0, *known])))


def _factor(plan: Plan, receipt: Receipt) -> float | None:
    """Measured pause of one move over its forecast, with the factor in that forecast taken out; None if unknown."""
    assumed = receipt.pause_forecast_s / plan.pause_factor
    return receipt.pause_s / assumed if assumed > 0 and receipt.pause_s > 0 else None
