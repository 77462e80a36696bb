"""Whose turn it is, among transfers that share hosts and storages."""

from __future__ import annotations

from vmferry.manager.transfers.scheduling import QueueEntry, Schedule, schedule

FOREGROUND, HIGH, NORMAL, LOW = range(4)


def two(_: str) -> int:
    return 2


def claim(id: str, rank: int = NORMAL, number: int = 1, slots: str = "a", *, leaving: bool = False) -> QueueEntry:
    return QueueEntry(id, rank, number, tuple(slots), leaving)


def test_higher_ones_begin_before_earlier_ones() -> None:
    waiting = [claim("old", LOW, 1), claim("new", HIGH, 3), claim("mid", NORMAL, 2)]
    assert schedule(waiting, [], two) == Schedule(begin=["new", "mid"])


def test_equals_begin_in_the_order_they_came() -> None:
    waiting = [claim("c", number=3), claim("a", number=1), claim("b", number=2)]
    assert schedule(waiting, [], two).begin == ["a", "b"]


def test_the_newest_of_the_lowest_makes_way() -> None:
    at_work = [claim("low-old", LOW, 1), claim("low-new", LOW, 2)]
    assert schedule([claim("high", HIGH, 3)], at_work, two) == Schedule(preempt=["low-new"])


def test_an_equal_does_not_make_way() -> None:
    at_work = [claim("x", NORMAL, 1), claim("y", NORMAL, 2)]
    assert schedule([claim("z", NORMAL, 3)], at_work, two) == Schedule()


def test_one_that_is_leaving_is_enough() -> None:
    at_work = [claim("low-old", LOW, 1), claim("low-new", LOW, 2, leaving=True)]
    assert schedule([claim("high", HIGH, 3)], at_work, two) == Schedule()


def test_nobody_makes_way_in_vain() -> None:
    """One of the two slots it needs cannot be freed."""
    at_work = [
        claim("low", LOW, 1, "a"),
        claim("l2", LOW, 2, "a"),
        claim("h1", HIGH, 3, "b"),
        claim("h2", HIGH, 4, "b"),
    ]
    assert schedule([claim("high", HIGH, 5, "ab")], at_work, two) == Schedule()


def test_one_victim_can_free_two_slots() -> None:
    at_work = [claim("both", LOW, 3, "ab"), claim("a", LOW, 1, "a"), claim("b", LOW, 2, "b")]
    assert schedule([claim("high", HIGH, 5, "ab")], at_work, two).preempt == ["both"]


def test_who_waits_keeps_its_place_in_all_its_lines() -> None:
    at_work = [claim("x", NORMAL, 1, "a"), claim("y", NORMAL, 2, "a")]
    waiting = [claim("both", NORMAL, 3, "ab"), claim("passes-by", NORMAL, 4, "b"), claim("elsewhere", NORMAL, 5, "c")]
    assert schedule(waiting, at_work, two).begin == ["elsewhere"]
