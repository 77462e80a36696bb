"""What tells a chain that somebody changed from the one that a job made: random chains, and each kind of change."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.model.chains import DiskChain, Expected, ForeignAct, Layer, differences, runs_of

SIZE = 1 << 30
names = st.lists(st.integers(0, 40).map(lambda n: f"/images/{n}"), min_size=2, max_size=8, unique=True)


def made(found: list[str], ours: int) -> tuple[Expected, DiskChain]:
    """A chain whose first images are the job's, as it expects it and as it is."""
    layers = tuple(Layer(name, "qcow2", SIZE) for name in found)
    own, below = found[:ours], found[ours:]
    return Expected("vda", tuple(own), tuple(below), layers[ours:]), DiskChain("vda", tuple(found), layers)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Expected, DiskChain]:
    found = draw(names)
    return made(found, draw(st.integers(1, len(found) - 1)))


def kinds(expected: Expected, found: DiskChain) -> list[ForeignAct]:
    return [difference.kind for difference in differences([expected], [found])]


def as_named(found: DiskChain, named: list[str]) -> DiskChain:
    return replace(found, named=tuple(named), layers=tuple(Layer(name, "qcow2", SIZE) for name in named))


@given(chains())
def test_what_the_job_made_is_no_difference_whatever_other_disks_do(made: tuple[Expected, DiskChain]) -> None:
    expected, found = made
    assert differences([expected], [found, DiskChain("vdz", ("/x",), ())]) == []
    raw = replace(found, layers=tuple(replace(layer, virtual_bytes=SIZE - 100) for layer in found.layers))
    assert differences([expected], [raw]) == []  # QEMU tells whole sectors once an overlay lies on it


@given(chains(), st.data())
def test_any_other_list_of_images_is_one_that_names_an_image(
    made: tuple[Expected, DiskChain], data: st.DataObject
) -> None:
    expected, found = made
    now = data.draw(names.filter(lambda drawn: tuple(drawn) != found.named))
    (told,) = differences([expected], [as_named(found, now)])
    assert told.target == "vda"
    assert any(name in told.says for name in (*now, *expected.named, "another order"))


@given(chains())
def test_each_kind_of_change_is_told_by_its_name(made: tuple[Expected, DiskChain]) -> None:
    expected, found = made
    named = list(found.named)
    assert kinds(expected, as_named(found, ["/theirs", *named])) == [ForeignAct.SNAPSHOT]
    assert kinds(expected, as_named(found, [named[0], "/theirs", *named[1:]])) == [ForeignAct.SNAPSHOT]
    assert kinds(expected, as_named(found, named[1:])) == [ForeignAct.MERGED]
    assert kinds(expected, as_named(found, named[:1])) == [ForeignAct.MERGED]
    assert kinds(expected, as_named(found, ["/theirs"])) == [ForeignAct.REPLACED]
    assert kinds(expected, replace(found, mirror="/theirs")) == [ForeignAct.BLOCK_JOB]
    assert kinds(expected, replace(found, block_job="pull")) == [ForeignAct.BLOCK_JOB]
    assert kinds(expected, replace(found, block_job="backup")) == []
    assert kinds(replace(expected, mirror="/copy"), replace(found, mirror="/copy", block_job="copy")) == []
    assert [each.kind for each in differences([expected], [])] == [ForeignAct.DETACHED]


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"virtual_bytes": 2 * SIZE}, ForeignAct.RESIZED, "was resized from"),
        ({"snapshots": ("mine",)}, ForeignAct.INTERNAL_SNAPSHOT, "holds the snapshot 'mine'"),
        ({"format": "raw"}, ForeignAct.UNLIKE, "/r0 as raw"),
        ({"name": "/elsewhere"}, ForeignAct.UNLIKE, "/elsewhere as qcow2"),
    ],
)
def test_what_qemu_tells_of_the_active_image_counts_as_well(
    change: dict[str, object], kind: ForeignAct, says: str
) -> None:
    expected, found = made(["/r0", "/base"], 1)
    top, below = found.layers
    (told,) = differences([expected], [replace(found, layers=(replace(top, **change), below))])  # type: ignore[arg-type]
    assert told.kind is kind
    assert says in told.says


def test_a_snapshot_in_the_base_was_there_before_and_a_volume_may_be_named_in_other_ways() -> None:
    expected, found = made(["/r0", "nbd://h/x"], 1)
    top, below = found.layers
    other = replace(below, name="nbd://h:10809/x", snapshots=("before",))
    assert differences([expected], [replace(found, layers=(top, other))]) == []


@given(names, st.sets(st.integers(0, 7)))
def test_runs_are_all_of_ours_and_nothing_of_others(chain: list[str], at: set[int]) -> None:
    ours = [name for number, name in enumerate(chain) if number in at]
    runs = runs_of(chain, ours)
    assert [name for first, last in runs for name in chain[first:last]] == ours
    assert all(after[0] > before[1] for before, after in pairwise(runs))


def test_a_name_in_json_that_qemu_has_cut_is_no_path_and_ends_nothing() -> None:
    pytest.importorskip("libvirt")
    from vmferry.hosts.libvirt.chains import _name

    whole = 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/san/vda.qcow2"}}'
    assert _name(whole) == "/san/vda.qcow2"
    assert not _name(f"{whole[:-20]}...").startswith("/")


def test_a_filter_of_qemus_is_no_image_of_the_chain() -> None:
    """As libvirt puts one above a disk with copy_on_read."""
    pytest.importorskip("libvirt")
    from vmferry.hosts.libvirt.chains import _layers

    base = {"filename": "/san/base.qcow2", "format": "qcow2", "virtual-size": 4096}
    top = {"filename": "/san/top.qcow2", "format": "qcow2", "virtual-size": 4096, "backing-image": base}
    told = {"filename": "json:{}", "format": "copy-on-read", "virtual-size": 4096, "backing-image": top}
    assert [layer.name for layer in _layers(told)] == ["/san/top.qcow2", "/san/base.qcow2"]
