"""Names of files that a job makes beside others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.model.names import LETTERS, LONGEST_BYTES, Overlay, beside, maker_of, new_id, overlay_in, unfit

NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= LONGEST_BYTES
)
SUFFIXES = st.sampled_from([".vmferry-abcd2345.part", ".vmferry-abcd2345.r31.qcow2", ".kept-20260131-abcd2345"])


@given(NAMES, SUFFIXES, st.sampled_from(["", ".part"]))
def test_a_name_fits_with_its_suffix_and_with_what_is_added_later(name: str, suffix: str, room: str) -> None:
    made = beside(Path("/san") / name, suffix, room=room)
    assert made.parent == Path("/san")
    assert made.name.endswith(suffix)
    assert len(f"{made.name}{room}".encode()) <= LONGEST_BYTES
    assert made == beside(Path("/san") / name, suffix, room=room)
    if len(f"{name}{suffix}{room}".encode()) <= LONGEST_BYTES:
        assert made.name == f"{name}{suffix}"


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True), SUFFIXES)
def test_two_files_never_get_the_same_name(names: list[str], suffix: str) -> None:
    first, second = (beside(Path("/san") / f"{'x' * 200}{name}"[:240], suffix) for name in names)
    same = f"{'x' * 200}{names[0]}"[:240] == f"{'x' * 200}{names[1]}"[:240]
    assert (first == second) is same


IDS = st.text(st.sampled_from(LETTERS), min_size=8, max_size=8) | st.builds(new_id)


@given(NAMES, IDS, st.integers(0, 99))
def test_an_overlay_is_known_by_its_name_whatever_id_its_job_has(name: str, job: str, round_: int) -> None:
    made = beside(Path("/san") / name, Overlay(job, round_).suffix, room=".part")
    assert overlay_in(made.name) == Overlay(job, round_)
    assert maker_of(made.name) == job


@pytest.mark.parametrize(
    "name",
    (
        "vda.qcow2.vmferry-abcd2345.part",
        "vda.qcow2.vmferry-abcd2345.r0.qcow2",
        "vda.qcow2.vmferry-abcd2345.r12.qcow2.part",
        "vmferry-abcd2345.memory",
        "vmferry-abcd2345.memory.spent",
        "vmferry-abcd2345.memory.part",
        "vmferry-abcd2345.probe.named",
    ),
)
def test_what_a_job_makes_is_told_by_its_name(name: str) -> None:
    assert maker_of(name) == "abcd2345"


@pytest.mark.parametrize(
    "name",
    (
        "vda.qcow2.vmferry-abcd2345.r0.x",  # libvirt's name for a snapshot "x" of an overlay
        "vda.qcow2.vmferry-abcd2345.r0.qcow2.backup",
        "vda.qcow2.vmferry-abcd2345.r0.1732980000",
        "vda.qcow2.kept-20261130-abcd2345",
        "notvmferry-abcd2345.part",
    ),
)
def test_what_others_derive_from_such_a_name_is_theirs(name: str) -> None:
    assert maker_of(name) is None


@pytest.mark.parametrize(
    "name", ("a\tb", "a\nb", "a\rb", "a\x1bb", "a\x7fb", "a" * 256, "ä" * 128, "/".join(["ab"] * 1400))
)
def test_a_path_that_a_definition_cannot_keep_or_a_disk_cannot_have_is_unfit(name: str) -> None:
    assert unfit(Path("/san2") / name)


@pytest.mark.parametrize("name", ("a b", "ä%2c,x=1;&<>'\"", "a" * 255, "\udce4"))
def test_any_other_path_is_fit(name: str) -> None:
    assert unfit(Path("/san2") / name) == ""
