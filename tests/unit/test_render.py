"""What people see: whole names, nothing taken as markup, nothing beyond the edge of the screen."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from tests.support.records import BASE, JOB, NAME, PLAN, PROGRESS, SOURCE, TO

from vmferry.api.codec import Event, PlannedStep, Preview, from_json, to_json
from vmferry.cli.render.job_pages import job_page, jobs_page
from vmferry.cli.render.live import picture
from vmferry.cli.render.plan_page import plan_page
from vmferry.cli.render.receipt_page import receipt_page
from vmferry.cli.render.screen import shown
from vmferry.cli.render.viewers import JsonLines, PlainLines
from vmferry.cli.render.vm_pages import vm_page, vms_page
from vmferry.cli.render.words import exit_code
from vmferry.model import (
    Disk,
    DiskReceipt,
    Finding,
    Image,
    JobState,
    Phase,
    Power,
    Receipt,
    Severity,
    Technology,
    Vm,
    checksum,
)

PREVIEW = Preview(PLAN, (PlannedStep("Freeze", "freezing the disks"), PlannedStep("Resume", "letting it run", True)))
RECEIPT = Receipt(
    job="7f3a91c2",
    vm=NAME,
    technology="quick",
    disks=(DiskReceipt("vda", str(SOURCE), str(TO), "qcow2", 10 << 30, 3 << 30, "ab" * 32),),
    phases=(Phase("copy base", 12.5, 3 << 30), Phase("save", 0.4)),
    pause_forecast_s=1.2,
    pause_s=0.9,
    verified=True,
    rounds=2,
    kept=(Path("/srv/alt/vda.qcow2.kept"),),
    quiesced="yes",
)
AWAY = replace(PLAN, technology=Technology.QUICK_RELOCATION, connect="host1", to="host2", networks={"br0": "br7"})
VM = Vm(
    name=NAME,
    uuid=PLAN.uuid,
    power=Power.OFF,
    persistent=False,
    memory_bytes=1 << 30,
    disks=(
        Disk("vda", (Image(SOURCE, "qcow2", 10 << 30, 3 << 30), Image(TO, "raw", 10 << 30, 1 << 30))),
        Disk("sda", (), device="cdrom", source="none", readonly=True),
    ),
    nvram=Path("/var/lib/nvram.fd"),
    snapshots=("before [x]",),
)
PAGES: dict[str, Callable[[], RenderableType]] = {
    "plan": lambda: plan_page(PREVIEW),
    "receipt": lambda: receipt_page(RECEIPT),
    "vms": lambda: vms_page([VM]),
    "vm": lambda: vm_page(VM),
    "jobs": lambda: jobs_page([JOB]),
    "job": lambda: job_page(JOB),
    "live": lambda: picture(JOB, Event.of(JOB), 61.0),
}


def rendered(page: RenderableType, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False, color_system=None)
    console.print(page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 80, 200])
@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_line_is_wider_than_the_terminal(page: str, width: int) -> None:
    assert max(len(line) for line in rendered(PAGES[page](), width).splitlines()) <= width


@pytest.mark.parametrize("page", sorted(PAGES))
def test_names_are_shown_letter_by_letter(page: str) -> None:
    assert NAME in rendered(PAGES[page](), 200)


@pytest.mark.parametrize("page", ["plan", "receipt", "vm"])
def test_a_path_that_is_too_long_is_folded_never_cut(page: str) -> None:
    text = "".join(line.strip() for line in rendered(PAGES[page](), 60).splitlines())
    assert str(SOURCE).replace(" ", "") in text.replace(" ", "")


def test_a_name_cannot_steer_the_terminal() -> None:
    vm = replace(VM, name="evil\x1b[2Jname\u202e")
    assert "\x1b" not in rendered(vms_page([vm]), 80)
    assert shown("a\nb\x07") == "a\ufffdb\ufffd"


def test_a_plan_says_why_higher_technologies_are_not_possible_and_where_the_way_back_ends() -> None:
    page = rendered(plan_page(PREVIEW), 80)
    assert "Not possible: Live storage migration" in page
    assert "vda is [encrypted]" in page
    assert "from here on only forward" in page
    assert "cure: install qemu-guest-agent" in page
    assert "1.2 s expected, 2.0 s allowed" in page


def test_a_plan_lists_file_by_file_what_goes_and_what_stays_each_with_its_reason() -> None:
    page = " ".join(rendered(plan_page(PREVIEW), 100).split())
    assert "disk vda, 3.0 GiB: nobody else needs it" in page
    assert f"stays {BASE} a link to {TO} base of vda, 1.0 GiB: needed by VM [b] (disk vda)" in page
    assert "1 removed at the end, 3.0 GiB free; 1 stays" in page


def test_a_receipt_says_what_became_of_each_file_and_what_is_free_again() -> None:
    ended = replace(PLAN.sources[0], freed_bytes=2 << 30), PLAN.sources[1]
    page = " ".join(rendered(receipt_page(replace(RECEIPT, sources=ended)), 100).split())
    assert "disk vda, 2.0 GiB free again: nobody else needs it" in page
    assert "base of vda, 1.0 GiB: needed by VM [b] (disk vda)" in page


def test_a_receipt_names_each_link_on_the_way_and_the_disks_that_were_no_part_of_the_move() -> None:
    linked = replace(PLAN.sources[0], path=BASE, links=(BASE, TO), data=SOURCE)
    told = replace(RECEIPT, sources=(linked,), stayed=("/srv/alt/[x].img (vdx)",))
    page = " ".join(rendered(receipt_page(told), 100).split())
    assert f"{BASE} a link to {SOURCE} by way of the link {TO}" in page
    assert "stays /srv/alt/[x].img (vdx): it was no part of this move" in page


def test_a_plan_with_blockers_shows_them_before_all_else() -> None:
    blocked = replace(PLAN, findings=(*PLAN.findings, Finding(Severity.BLOCKER, "no room", "free some")))
    page = rendered(plan_page(replace(PREVIEW, plan=blocked)), 80)
    assert page.index("cannot be moved") < page.index("no room") < page.index("guest agent")
    assert "Steps" not in page


def test_a_receipt_tells_both_pauses_and_where_the_source_is() -> None:
    page = rendered(receipt_page(RECEIPT), 80)
    assert "900 ms measured, 1.2 s forecast" in page
    assert "/srv/alt/vda.qcow2.kept" in page
    assert "abababababababab" in page
    assert "frozen by the guest agent" in page


def test_a_receipt_says_where_an_image_is_that_somebody_chose_for_the_next_start() -> None:
    chosen = replace(RECEIPT, next_start=("vdb",))
    assert "which its definition named, stays for vdb" in rendered(receipt_page(chosen), 100)
    away = replace(chosen, from_host="one", to_host="two")
    assert "which its definition named, was left at the source for vdb" in rendered(receipt_page(away), 100)


def test_a_receipt_says_when_the_guest_stood_longer_than_was_allowed() -> None:
    longer = rendered(receipt_page(replace(RECEIPT, pause_allowed_s=0.5)), 100)
    assert "900 ms measured, 1.2 s forecast, longer than the 500 ms allowed" in longer
    for allowed_s in (0.0, 0.9, 2.0):
        assert "allowed" not in rendered(receipt_page(replace(RECEIPT, pause_allowed_s=allowed_s)), 100)


def test_a_receipt_of_a_guest_that_may_be_frozen_still_says_how_to_thaw_it() -> None:
    page = rendered(receipt_page(replace(RECEIPT, vm="web 1", quiesced="unsure")), 120)
    assert "virsh domfsthaw 'web 1'" in page


def test_a_plan_to_another_host_names_both_and_what_becomes_of_its_networks() -> None:
    page = rendered(plan_page(replace(PREVIEW, plan=AWAY)), 100)
    assert re.search(r"from host +host1 *\n", page)
    assert re.search(r"to host +host2 *\n", page)
    assert "br0 becomes br7" in page
    assert "from host" not in rendered(plan_page(PREVIEW), 100)


def test_a_job_to_another_host_names_both_and_what_it_left_on_a_lost_one() -> None:
    job = replace(JOB, plan=AWAY, lost="host2", left=(TO,))
    page = rendered(job_page(job), 100)
    assert re.search(r"from +host1 *\n", page)
    assert f"host2: {TO.parent}" in page
    assert "host2, as an operator said" in page
    assert f"there may be {TO}" in page
    assert "host2: /srv/neu" in rendered(jobs_page([job]), 160)


def test_a_receipt_of_a_move_between_hosts_names_both() -> None:
    receipt = replace(RECEIPT, from_host="host1", to_host="host2")
    page = rendered(receipt_page(receipt), 200)
    assert "was moved from host1 to host2: Quick" in page
    assert f"host1: {SOURCE}" in page
    assert f"host2: {TO}" in page
    lost = rendered(receipt_page(replace(receipt, kept=(), lost="host1", left=(SOURCE,))), 200)
    assert "left on host1, which was declared lost" in lost
    assert "removed" not in lost


FIRST_FIELDS = {
    *("job", "vm", "technology", "disks", "phases", "pause_forecast_s", "pause_s", "verified", "rounds"),
    *("finished", "kept", "quiesced", "checksum"),
}
"""Of the receipts that the first version wrote, and that `vmferry verify` has to take for whole for ever."""


def test_a_receipt_without_hosts_keeps_the_checksum_that_it_always_had() -> None:
    told = to_json(RECEIPT)
    assert isinstance(told, dict)
    earlier = {name: value for name, value in told.items() if name in FIRST_FIELDS}
    assert earlier.keys() == FIRST_FIELDS
    assert checksum(told) == checksum(earlier)
    assert checksum(to_json(replace(RECEIPT, lost="host1"))) != checksum(earlier)


def test_plain_lines_tell_changes_at_once_and_figures_only_every_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = itertools.count()
    lines = PlainLines(clock=lambda: float(next(seconds)))
    lines.begin(JOB)
    for _ in range(20):
        lines.show(Event.of(JOB))
    lines.show(Event.of(replace(JOB, progress=replace(PROGRESS, now="comparing every byte", step=5))))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{NAME}: Quick Storage Migration, job 7f3a91c2"
    assert out[1] == "copying the base (step 4 of 12)"
    assert out[-1] == "comparing every byte (step 5 of 12)"
    figures = out[2:-1]
    assert 1 <= len(figures) <= 10
    assert figures[0] == "  33 %  1.0 GiB of 3.0 GiB, 191 MiB/s, 11.0 s left, pause forecast 60 ms"


def test_a_job_that_waits_for_a_person_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    paused = replace(JOB, state=JobState.PAUSED, sentence="the guest writes too fast: raise the limit")
    PlainLines().show(Event.of(paused))
    assert capsys.readouterr().out == "waits for you: the guest writes too fast: raise the limit\n"


def test_json_lines_are_one_object_a_line_and_end_with_the_receipt(capsys: pytest.CaptureFixture[str]) -> None:
    lines = JsonLines()
    lines.begin(JOB)
    lines.show(Event.of(JOB))
    lines.say("the worker died")
    lines.end(replace(JOB, state=JobState.DONE), RECEIPT)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["submitted", "progress", "message", "end"]
    assert events[-1]["exit_code"] == 0
    assert events[-1]["receipt"]["disks"][0]["from"] == str(SOURCE)


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        (JobState.DONE, "", 0),
        (JobState.UNDONE, "DestinationFull", 1),
        (JobState.UNDONE, "DestinationExists", 1),
        (JobState.UNDONE, "Cancelled", 5),
        (JobState.FAILED, "Cancelled", 5),
        (JobState.FAILED, "DestinationExists", 3),
        (JobState.FAILED, "KeyError", 1),
        (JobState.STUCK, "HostRefused", 4),
    ],
)
def test_each_end_has_its_exit_code(state: JobState, kind: str, code: int) -> None:
    assert exit_code(replace(JOB, state=state, kind=kind)) == code


def test_records_survive_the_wire() -> None:
    for record in (JOB, RECEIPT, VM, PREVIEW, Event.of(JOB)):
        assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record
