"""Range arithmetic against sets of single bytes."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from vmferry.transfer.ranges import Range, align, by_chunk, clip, common, pieces, total

SIZE = 200


@st.composite
def sorted_ranges(draw: st.DrawFn) -> list[Range]:
    borders = sorted(draw(st.sets(st.integers(0, SIZE), max_size=20)))
    return [Range(a, b) for a, b in zip(borders[::2], borders[1::2], strict=False)]


def members(ranges: list[Range] | tuple[Range, ...]) -> set[int]:
    return {n for r in ranges for n in range(r.start, r.end)}


@settings(deadline=None)
@given(sorted_ranges(), st.integers(1, 50))
def test_chunks_hold_the_same_bytes_as_the_ranges_and_none_twice(ranges: list[Range], chunk: int) -> None:
    chunks = list(by_chunk(ranges, chunk))
    assert members([r for c in chunks for r in c.data]) == members(ranges)
    assert sum(total(c.data) for c in chunks) == total(ranges)
    assert [c.index for c in chunks] == sorted({n // chunk for n in members(ranges)})
    assert all(n // chunk == c.index for c in chunks for n in members(c.data))


@settings(deadline=None)
@given(sorted_ranges(), st.integers(1, 50))
def test_aligned_ranges_are_the_units_that_hold_data_and_do_not_touch(ranges: list[Range], unit: int) -> None:
    aligned = list(align(ranges, unit, SIZE))
    touched = {n // unit for n in members(ranges)}
    assert members(aligned) == {n for n in range(SIZE) if n // unit in touched}
    assert all(a.end < b.start for a, b in pairwise(aligned))


@settings(deadline=None)
@given(sorted_ranges(), sorted_ranges())
def test_common_is_the_intersection(a: list[Range], b: list[Range]) -> None:
    assert members(list(common(a, b))) == members(a) & members(b)


@settings(deadline=None)
@given(sorted_ranges(), st.integers(0, SIZE), st.integers(0, SIZE))
def test_clip_keeps_what_lies_within(ranges: list[Range], start: int, end: int) -> None:
    within = Range(start, max(start, end))
    assert members(list(clip(ranges, within))) == members(ranges) & members([within])


@settings(deadline=None)
@given(st.integers(0, SIZE), st.integers(0, SIZE), st.lists(st.integers(1, 30), min_size=1))
def test_pieces_cover_the_whole_even_if_their_size_changes_on_the_way(a: int, b: int, sizes: list[int]) -> None:
    whole = Range(min(a, b), max(a, b))
    asked = iter(sizes * SIZE)
    cut = list(pieces(whole, lambda: next(asked)))
    assert members(cut) == members([whole])
    assert total(cut) == whole.length
