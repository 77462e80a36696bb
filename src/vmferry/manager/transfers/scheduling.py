"""Decides which transfers begin, and which make way for them. Pure."""

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
    begin: list[str] = field(default_factory=list)
    make_way: list[str] = field(default_factory=list)


def turns(waiting: Sequence[QueueEntry], at_work: Sequence[QueueEntry], most: Callable[[str], int]) -> Schedule:
    """Decide which waiting transfers begin: those whose slots are all free.

    Where a slot is full (`most`), the last transfer of a lower priority makes way. One that has to wait keeps its
    places in the lines for all its slots, as jobs do: no later one that needs one of them passes it. An equal never
    makes way: equals take turns piece by piece, in the throttle.
    """
    found = Schedule()
    held = Counter(slot for claim in at_work for slot in claim.slots)
    waited: set[str] = set()
    for claim in sorted(waiting, key=lambda c: (c.rank, c.number)):
        if not waited.isdisjoint(claim.slots):
            waited.update(claim.slots)
            continue
        full = [slot for slot in claim.slots if held[slot] >= most(slot)]
        if not full:
            held.update(claim.slots)
            found.begin.append(claim.id)
            continue
        found.make_way += _victims(claim, full, at_work)
        waited.update(claim.slots)
    return found


def _victims(claim: QueueEntry, full: Sequence[str], at_work: Sequence[QueueEntry]) -> list[str]:
    """Return the transfers that make way so that these slots get free; none, if one slot cannot be freed."""
    victims: list[str] = []
    for slot in full:
        below = [other for other in at_work if slot in other.slots and other.rank > claim.rank]
        if any(other.leaving or other.id in victims for other in below):
            continue
        if not below:
            return []
        victims.append(max(below, key=lambda c: (c.rank, c.number)).id)
    return victims
