"""Foreign acts at random instants of jobs: whatever people and other tools do meanwhile, nothing of anybody's is lost.

VMFERRY_TORTURE_SEED is the first seed, VMFERRY_TORTURE_RUNS how many there are, VMFERRY_TORTURE_OUT a folder for a
JSON file of each run, from which with_others.py makes docs/with-others.md. A seed does the same run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fleets import ManagedLab, managed
from tests.support.guests import MakeGuest, MakeGuestOn
from tests.support.seen import destination, long
from tests.support.torture import Torture
from tests.support.torture_draw import APART, HERE, Draw, Report, draw, spec_of
from tests.support.with_others import came_to, page, phase_of

from vmferry.lab import Lab, LabHost
from vmferry.lab.vmferry_command import VmferryCommand
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import Technology

FIRST = int(os.environ.get("VMFERRY_TORTURE_SEED", "1000"))
RUNS = int(os.environ.get("VMFERRY_TORTURE_RUNS", "20"))
APART_RUNS = int(os.environ.get("VMFERRY_TORTURE_APART_RUNS", str(RUNS // 3)))
OUT = Path(os.environ["VMFERRY_TORTURE_OUT"]) if "VMFERRY_TORTURE_OUT" in os.environ else None
ALWAYS = (457, 289, 285)
"""In make test: live with a clone made of its overlay, quick with a snapshot put on it, offline and renamed."""
SLOW = ("--limit", "16MiB", "--max-pause", "60s")


@pytest.fixture
def disc(lab: LabHost) -> Path:
    """A disc that lies in the guest's drive from the beginning."""
    path = lab.at / "first.iso"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.parametrize("seed", [*ALWAYS, *map(long, range(FIRST, FIRST + RUNS))])
def test_nothing_is_lost_whatever_others_do_meanwhile(
    seed: int, disc: Path, lab: LabHost, make_guest: MakeGuest, ferry: VmferryCommand, tmp_path: Path
) -> None:
    drawn = draw(seed)
    guest = make_guest(spec_of(drawn, disc))
    there = destination(lab, guest)
    words = _words(drawn)
    foreign = lab.storage("san1") / guest.name / "foreign"
    foreign.mkdir()

    report = Torture(
        drawn, guest, [lab], ferry, foreign, lambda: ferry.detached(guest.name, "--path", there, *words), there
    ).run()

    _judged(report)


@pytest.fixture
def fleet(two_hosts: Lab, tmp_path: Path) -> Iterator[ManagedLab]:
    with managed(two_hosts, tmp_path.name) as managed_lab:
        yield managed_lab


@pytest.mark.long
@pytest.mark.xdist_group("two hosts")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + APART_RUNS))
def test_nothing_is_lost_whatever_others_do_while_it_goes_to_another_host(
    seed: int, fleet: ManagedLab, make_guest_on: MakeGuestOn
) -> None:
    drawn = draw(seed, APART)
    one, two = fleet.lab.hosts
    guest = make_guest_on(one, spec_of(drawn, None))
    there = destination(two, guest)
    foreign = one.storage("san1") / guest.name / "foreign"
    foreign.mkdir()
    words = _words(drawn)

    report = Torture(
        drawn,
        guest,
        [one, two],
        fleet.manager,
        foreign,
        lambda: fleet.detached(guest, two, "--path", there, *words),
        there,
    ).run()

    _judged(report)


def _words(drawn: Draw) -> list[str]:
    via = [] if drawn.technology is Technology.LAN else ["--via", drawn.via]
    return [*via, *SLOW, *(["--keep-source"] if drawn.keep_source else [])]


def _judged(report: Report) -> None:
    print(report.line())
    if OUT is not None:
        report.write(OUT)
    assert not report.found, report.line()
    assert report.outcome.endswith(("done", "undone", "failed", "stuck", "waits")), report


def test_a_seed_stands_for_one_run() -> None:
    assert [draw(seed) for seed in range(50)] == [draw(seed) for seed in range(50)]
    assert {draw(seed).technology for seed in range(50)} == set(HERE)
    assert {draw(seed, APART).technology for seed in range(50)} == set(APART)


def test_the_page_has_a_phase_for_each_step_and_tells_what_was_met() -> None:
    assert all(phase_of(name) for strategy in STRATEGIES.values() for name in (*strategy.names, ""))
    refused = Report(2, "live", "blockresize", "Pivot", libvirt="it is busy", outcome="done")
    stuck = Report(3, "live", "detach-disk", "Rounds", outcome="stuck", sentence="/tmp/x/tortured 3/vda.qcow2 is gone")
    reports = [vars(report) for report in (refused, stuck, stuck)]
    assert [came_to(report) for report in reports] == ["refused", "stuck", "stuck"]
    made = page(reports)
    assert "| `detach-disk` |  | stuck (2) |  |  |" in made
    assert "- `detach-disk`: /VM/vda.qcow2 is gone" in made
    assert "tortured" not in made
