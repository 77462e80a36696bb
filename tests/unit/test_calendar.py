"""The weekly calendar of a limit: which one holds, until when, in which words."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmferry.cli.calendars import parse_window, window_text
from vmferry.model import Scope, SharedLimit, Window
from vmferry.model.limits import DAY_MIN, InForce, Local, in_force, limit_at

MIB = 1 << 20
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = ("Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "UTC")
OFFICE = parse_window("mon-fri 08:00-18:00=20MiB")
NIGHT = parse_window("daily 22:00-06:00=0")


def wall(zone: ZoneInfo) -> Local:
    return lambda at_s: datetime.fromtimestamp(at_s, zone).timetuple()


def at(text: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def of(*windows: Window, limit: int | None = 200 * MIB) -> SharedLimit:
    return SharedLimit(Scope.HOST, "memory", "", limit, windows)


def seen(limit: SharedLimit, at_s: float) -> tuple[int | None, str]:
    found = in_force(limit, at_s, wall(BERLIN))
    return found.limit_bytes_s, f"{datetime.fromtimestamp(found.until_s or 0, BERLIN):%a %H:%M}"


@pytest.mark.parametrize(
    ("when", "now"),
    [
        ("2026-03-02 07:59:59", (200 * MIB, "Mon 08:00")),
        ("2026-03-02 08:00:00", (20 * MIB, "Mon 18:00")),
        ("2026-03-02 17:59:59", (20 * MIB, "Mon 18:00")),
        ("2026-03-02 18:00:00", (200 * MIB, "Tue 08:00")),
        ("2026-03-06 18:00:00", (200 * MIB, "Mon 08:00")),
    ],
)
def test_a_window_holds_from_its_first_minute_to_the_one_before_its_last(when: str, now: tuple[int, str]) -> None:
    assert seen(of(OFFICE), at(when)) == now


def test_a_window_that_ends_before_it_begins_ends_the_next_morning() -> None:
    sunday_night = of(parse_window("sun 22:00-06:00=1MiB"))
    assert seen(sunday_night, at("2026-03-01 23:00")) == (MIB, "Mon 06:00")
    assert seen(sunday_night, at("2026-03-02 05:59")) == (MIB, "Mon 06:00")
    assert seen(sunday_night, at("2026-03-01 05:00")) == (200 * MIB, "Sun 22:00")


def test_a_calendar_only_lowers() -> None:
    assert limit_at(of(OFFICE, limit=MIB), at("2026-03-02 12:00"), wall(BERLIN)) == MIB
    assert limit_at(of(OFFICE, limit=None), at("2026-03-02 12:00"), wall(BERLIN)) == 20 * MIB
    assert limit_at(of(OFFICE, NIGHT, limit=None), at("2026-03-02 23:00"), wall(BERLIN)) == 0
    assert limit_at(of(OFFICE, limit=None), at("2026-03-02 23:00"), wall(BERLIN)) is None


def test_a_window_of_the_whole_week_never_ends() -> None:
    assert in_force(of(parse_window("daily 00:00-24:00=0")), at("2026-03-02 12:00"), wall(BERLIN)) == InForce(0, None)


def test_when_summer_time_begins_a_window_begins_by_the_wall_clock_and_is_an_hour_shorter() -> None:
    night = of(parse_window("sun 01:00-08:00=0"))
    begin, end = at("2026-03-29 01:00"), at("2026-03-29 08:00")
    assert end - begin == 6 * 3600
    assert in_force(night, begin, wall(BERLIN)) == InForce(0, end)


def test_an_hour_that_comes_twice_holds_twice() -> None:
    twice = of(parse_window("sun 02:15-02:45=0"))
    once, again = at("2026-10-25 02:15"), at("2026-10-25 02:15", fold=1)
    assert again - once == 3600
    assert in_force(twice, once, wall(BERLIN)) == InForce(0, once + 1800)
    assert in_force(twice, once + 1800, wall(BERLIN)) == InForce(200 * MIB, again)
    assert in_force(twice, again, wall(BERLIN)) == InForce(0, again + 1800)


def test_an_hour_that_is_left_out_does_not_hold_that_day() -> None:
    skipped = of(parse_window("sun 02:15-02:45=0"))
    assert in_force(skipped, at("2026-03-29 01:00"), wall(BERLIN)) == InForce(200 * MIB, at("2026-04-05 02:15"))


windows = st.builds(
    lambda days, begin, length, limit: Window(tuple(sorted(days)), begin, (begin + length) % DAY_MIN, limit),
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, DAY_MIN - 1),
    st.integers(1, DAY_MIN - 1),
    st.sampled_from([0, 5, 10]),
)
instants = st.one_of(
    st.floats(1.6e9, 2.0e9),
    st.sampled_from([1774746000.0, 1792890000.0]).flatmap(lambda s: st.floats(s - 90000, s + 90000)),  # DST, Berlin
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(windows, max_size=4), st.sampled_from([None, 1, 7, 20]), instants, st.sampled_from(ZONES))
@example([parse_window("sun 02:15-02:45=0")], None, 1792890000.0, "Europe/Berlin")
def test_what_holds_holds_at_every_minute_until_its_end_and_not_at_that(
    during: list[Window], limit: int | None, at_s: float, zone: str
) -> None:
    found = in_force(of(*during, limit=limit), at_s, wall(ZoneInfo(zone)))

    def holds(then_s: float) -> int | None:
        now = datetime.fromtimestamp(then_s, ZoneInfo(zone))
        minute = now.hour * 60 + now.minute
        caps = [] if limit is None else [limit]
        for window in during:
            length = (window.to_min - window.from_min) % DAY_MIN
            since = [
                (minute - window.from_min + DAY_MIN * (now.weekday() - day)) % (7 * DAY_MIN) for day in window.days
            ]
            caps += [window.limit_bytes_s] if min(since) < length else []
        return min(caps, default=None)

    assert holds(at_s) == found.limit_bytes_s
    end = at_s + 8 * 86400 - 60 if found.until_s is None else found.until_s
    assert end > at_s
    then = (at_s // 60 + 1) * 60
    while then < end:
        assert holds(then) == found.limit_bytes_s
        then += 60
    if found.until_s is not None:
        assert holds(found.until_s) != found.limit_bytes_s


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("mon-fri 08:00-18:00=20MiB", "mon-fri 08:00-18:00 20 MiB/s"),
        ("Sat,Sun 0:00-24:00 = 0", "sat,sun 00:00-24:00 nothing moves"),
        ("fri-mon 22:00-06:00=512K/s", "mon,fri-sun 22:00-06:00 512 KiB/s"),
        ("daily 12:30-13:00=1G", "daily 12:30-13:00 1.0 GiB/s"),
    ],
)
def test_a_window_is_told_as_it_is_typed(typed: str, told: str) -> None:
    assert window_text(parse_window(typed)) == told


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("mon-fri=20MiB", "mon-fri 08:00-18:00=20MiB"),
        ("mon-fri 08:00-18:00", "mon-fri 08:00-18:00=20MiB"),
        ("monday 08:00-18:00=1M", "mon, tue"),
        ("mon- 08:00-18:00=1M", "no day"),
        ("mon 08:00-24:01=1M", "no time of a day"),
        ("mon 08:60-09:00=1M", "no time of a day"),
        ("mon 24:00-09:00=1M", "next day"),
        ("mon 08:00-08:00=1M", "00:00-24:00"),
        ("mon 08:00-09:00=none", "or 0"),
        ("mon 08:00-09:00=20", "or 0"),
    ],
)
def test_what_is_no_window_is_refused_with_one_that_is(typed: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_window(typed)


@settings(max_examples=200)
@given(st.text(alphabet="monfri daily0123456789:-=,MiB \n", max_size=40))
def test_any_text_is_a_window_or_a_sentence(text: str) -> None:
    try:
        window = parse_window(text)
    except ValueError as error:
        assert str(error)
    else:
        assert parse_window(f"{window.when}={window.limit_bytes_s}B".replace("=0B", "=0")) == window


def test_the_end_is_found_in_no_time_a_person_notices() -> None:
    """Eight days, minute by minute, by the system's own clock: work is bounded, whatever the windows are."""
    calls = 0

    def counted(at_s: float, local: Callable[[float], time.struct_time] = time.localtime) -> time.struct_time:
        nonlocal calls
        calls += 1
        return local(at_s)

    in_force(of(parse_window("daily 00:00-24:00=0"), *[OFFICE] * 63), 1.7e9, counted)
    assert calls <= 8 * DAY_MIN + 1
