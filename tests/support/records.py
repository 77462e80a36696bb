"""Rows and views of jobs, as stores keep and pages show them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.worlds import Scenario, make_plan, make_world

from vmferry.manager.store import NewJob
from vmferry.manager.store.jobs import now
from vmferry.model import (
    DiskMove,
    DiskProgress,
    Fate,
    Finding,
    ImageMove,
    JobState,
    JobView,
    MoveRequest,
    Plan,
    Power,
    Progress,
    Ruled,
    Severity,
    SourceFileFate,
    StepRecord,
    Technology,
)


def some_plan() -> Plan:
    return make_plan(make_world(), Scenario(Technology.LIVE, Power.RUNNING))


def job(id: str, slots: tuple[str, ...] = ("host a",), vm: str | None = None) -> NewJob:
    plan = replace(some_plan(), uuid=vm or f"uuid of {id}")
    wanted = MoveRequest("guest", "memory", path=Path("/slow"), disks={"vda": Path("/fast")})
    return NewJob(id, plan, wanted, "1", slots, {"slow": 10}, now())


BASE = Path("/templates/debian [12].qcow2")


NAME = "büro [bold]x[/bold] 2"


SOURCE = Path("/srv/alt/ein sehr langer Ordner [red]/der Name der Maschine und noch etwas mehr/vda.qcow2")


TO = Path("/srv/neu/vda.qcow2")


MOVE = ImageMove(SOURCE, TO, "qcow2", 10 << 30, 3 << 30)


PLAN = Plan(
    vm=NAME,
    uuid="11111111-2222-3333-4444-555555555555",
    connect="qemu:///system",
    technology=Technology.QUICK,
    steps=("Freeze", "Resume"),
    disks=(
        DiskMove("vda", (MOVE,), SOURCE, TO),
        DiskMove("vdb", (replace(MOVE, stays=True), MOVE), SOURCE, TO),
    ),
    files=(),
    power=Power.RUNNING,
    persistent=True,
    memory_bytes=1 << 30,
    keep_source=False,
    max_pause_s=2.0,
    sources=(
        SourceFileFate(SOURCE, "disk vda", Fate.REMOVED, "nobody else needs it", 3 << 30),
        SourceFileFate(BASE, "base of vda", Fate.STAYS, "needed by VM [b] (disk vda)", 1 << 30, links=(BASE,), data=TO),
    ),
    findings=(Finding(Severity.NOTE, "the guest agent does not answer", "install qemu-guest-agent"),),
    ruled_out=(Ruled(Technology.LIVE, ("vda is [encrypted]",)),),
    pause_forecast_s=1.2,
    seconds_forecast=100.0,
)


PROGRESS = Progress(
    now="copying the base",
    next="comparing every byte",
    step=4,
    steps=12,
    disks=(DiskProgress("vda", 1 << 30, 3 << 30), DiskProgress("vdb")),
    rate_bytes_s=200e6,
    seconds_left=11.0,
    pause_forecast_s=0.06,
)


JOB = JobView(
    id="7f3a91c2",
    state=JobState.RUNNING,
    plan=PLAN,
    created="2026-01-01T00:00:00.000000+00:00",
    progress=PROGRESS,
    journal=(StepRecord("do", 0, "Freeze", "freezing the disks", "2026-01-01T00:00:01+00:00", ok=True),),
)
