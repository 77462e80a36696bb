"""A priority scheduler with pre-emption: which transfers begin, and which make way for them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A transfer that waits or is at work. The lower rank goes first, then the lower number."""

    id: str
    rank: int
    number: int
    slots: tuple[str, ...]
    leaving: bool = False
    """At work still, but asked to make way."""


@dataclass(slots=True)
class Schedule:
    """Ids of transfers."""

    begin: list[str] = field(default_factory=list)
    preempt: list[str] = field(default_factory=list)


def schedule(waiting: Sequence[QueueEntry], at_work: Sequence[QueueEntry], most: Callable[[str], int]) -> Schedule:
    """Decide which waiting transfers begin: those whose slots are all free.

    Where a slot is full (`most`), the last transfer of a lower priority makes way. One that has to wait keeps its
    places in the lines for all its slots, as jobs do: no later one that needs one of them passes it. An equal never
    makes way: equals take turns piece by piece, in the throttle.
    """
    decided = Schedule()
    held = Counter(slot for entry in at_work for slot in entry.slots)
    waited: set[str] = set()
    for entry in sorted(waiting, key=lambda c: (c.rank, c.number)):
        if not waited.isdisjoint(entry.slots):
            waited.update(entry.slots)
            continue
        full = [slot for slot in entry.slots if held[slot] >= most(slot)]
        if not full:
            held.update(entry.slots)
            decided.begin.append(entry.id)
            continue
        decided.preempt += _victims(entry, full, at_work)
        waited.update(entry.slots)
    return decided


def _victims(entry: QueueEntry, full: Sequence[str], at_work: Sequence[QueueEntry]) -> list[str]:
    """Return the transfers that make way so that these slots get free; none, if one slot cannot be freed."""
    victims: list[str] = []
    for slot in full:
        below = [other for other in at_work if slot in other.slots and other.rank > entry.rank]
        if any(other.leaving or other.id in victims for other in below):
            continue
        if not below:
            return []
        victims.append(max(below, key=lambda c: (c.rank, c.number)).id)
    return victims
