"""Several transfers as one: one progress, one end, the first error stops all."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import pytest

from vmferry import transfer as service
from vmferry.errors import Cancelled, DestinationFull
from vmferry.transfer import Copied, Throttle, Transfer, Watch
from vmferry.transfer.engine.parallel import in_parallel

SIZES = (3 << 20, 9 << 20, 70_000)


class Seen:
    """A watch that keeps what it is told."""

    def __init__(self, *, cancel: bool = False) -> None:
        self.throttle = Throttle()
        self.told: list[tuple[int, int]] = []
        self._cancel = cancel

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self.told.append((done_bytes, total_bytes))

    def check(self) -> None:
        if self._cancel:
            raise Cancelled


@pytest.fixture
def transfers(tmp_path: Path) -> list[Transfer]:
    made = []
    for number, size in enumerate(SIZES):
        source = tmp_path / f"{number}"
        source.write_bytes(random.Random(number).randbytes(size))
        made.append(Transfer(source, tmp_path / f"{number}.part", tmp_path / f"{number}.bookmarks"))
    return made


def acts(transfers: list[Transfer]) -> list[Callable[[Watch], Copied]]:
    return [partial(service.copy, transfer) for transfer in transfers]


def test_all_arrive_and_are_counted_as_one(transfers: list[Transfer]) -> None:
    watch = Seen()
    copied = in_parallel(acts(transfers), watch)
    assert [each.virtual_bytes for each in copied] == list(SIZES)
    assert all(each.destination.read_bytes() == each.source.read_bytes() for each in transfers)
    assert watch.told[-1] == (sum(SIZES), sum(SIZES))


def test_they_run_at_once() -> None:
    met = Barrier(3, timeout=30)
    assert sorted(in_parallel([lambda _: met.wait() for _ in range(3)], Seen())) == [0, 1, 2]


def test_the_first_error_stops_the_others_and_is_raised() -> None:
    begun, stopped = Event(), Event()

    def fails(_: Watch) -> None:
        assert begun.wait(30)
        raise DestinationFull(path="/san2", needed=1, free=0)

    def goes_on(watch: Watch) -> None:
        begun.set()
        try:
            while True:
                watch.check()
        except Cancelled:
            stopped.set()
            raise

    with pytest.raises(DestinationFull):
        in_parallel([goes_on, fails], Seen())
    assert stopped.is_set()


def test_a_transfer_that_is_stopped_by_anothers_error_is_not_taken_for_whole(transfers: list[Transfer]) -> None:
    """Its bookmarks say how far it came: compare refuses it, and the next copy ends it."""

    def fails(_: Watch) -> Copied:
        raise DestinationFull(path="/san2", needed=1, free=0)

    for _ in range(20):
        with pytest.raises(DestinationFull):
            in_parallel([fails, *acts(transfers)], Seen())
    in_parallel(acts(transfers), Seen())
    assert all(each.destination.read_bytes() == each.source.read_bytes() for each in transfers)
    for each in transfers:
        service.compare(each, Seen())


def test_a_cancelled_watch_ends_them_all(transfers: list[Transfer]) -> None:
    with pytest.raises(Cancelled):
        in_parallel(acts(transfers), Seen(cancel=True))


def test_none_at_all_is_fine() -> None:
    assert in_parallel([], Seen()) == []
