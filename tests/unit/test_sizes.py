"""Bytes and seconds, as people write and read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.cli.render.sizes import bytes_text, parse_bytes, parse_link, parse_rate, parse_seconds, seconds_text

FACTORS = {"B": 1, "K": 2**10, "KiB": 2**10, "KB": 1000, "MiB": 2**20, "m": 2**20, "GB": 10**9, "g": 2**30}


@given(number=st.integers(1, 10**6), unit=st.sampled_from(sorted(FACTORS)), space=st.sampled_from(["", " "]))
def test_a_size_means_its_number_times_its_unit(number: int, unit: str, space: str) -> None:
    assert parse_bytes(f"{number}{space}{unit}") == number * FACTORS[unit]


@given(st.integers(1, 2**62))
def test_what_is_shown_of_a_size_is_read_back_within_its_four_figures(size: int) -> None:
    assert parse_bytes(bytes_text(size)) == pytest.approx(size, rel=0.06)


@given(st.integers(0, 2**62))
def test_a_size_is_shown_in_at_most_eight_characters(size: int) -> None:
    assert re.fullmatch(r"\d{1,4}(\.\d)? (B|[KMGTP]iB)", bytes_text(size))


@given(st.integers(1, 86_400_000))
def test_a_time_in_milliseconds_is_that_many_thousandths(milliseconds: int) -> None:
    assert parse_seconds(f"{milliseconds}ms") == pytest.approx(milliseconds / 1000)


@pytest.mark.slow
@given(st.text())
def test_any_other_text_is_refused_with_a_sentence(text: str) -> None:
    for parse in (parse_bytes, parse_rate, parse_seconds):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize("text", ["200", "", "MiB", "-1MiB", "1e3MiB", "0MiB", "1,5G", "2 parsecs", "٣MiB", "9999999P"])
def test_a_bad_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["2", "0s", "-2s", "2 weeks", "25h", "nan", "inf", "infs", "s"])
def test_a_bad_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_seconds(text)


def test_times_in_their_units() -> None:
    assert [parse_seconds(text) for text in ("2s", "500ms", "1m", "0.5h", "1.5 s")] == [2.0, 0.5, 60.0, 1800.0, 1.5]


def test_a_rate_may_be_none_and_may_say_a_second() -> None:
    assert parse_rate("none") is None
    assert parse_rate("Unlimited") is None
    assert parse_rate("1.5G/s") == 3 << 29


def test_times_are_shown_as_people_say_them() -> None:
    shown = [seconds_text(seconds) for seconds in (0, 0.0421, 1.24, 59.99, 200, 7500)]
    assert shown == ["0 ms", "42 ms", "1.2 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


def test_the_speed_of_a_link_is_in_bits() -> None:
    assert [parse_link(text) for text in ("100mbit", "2.5Gbit", "64 kbit")] == [12_500_000, 312_500_000, 8000]


@pytest.mark.parametrize("text", ["1GB", "100", "0mbit", "1bit", "mbit", "-1gbit", "", "99999999999gbit"])
def test_what_is_no_speed_of_a_link_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"gbit|carry"):
        parse_link(text)
