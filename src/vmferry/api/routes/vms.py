"""Routes that change nothing: the worker's health, VMs, and the plan of a move; and the one that ends the worker."""

from __future__ import annotations

import os

from fastapi import APIRouter

from vmferry.api.codec import Health, LeaveAnswer, PlannedStep, Preview
from vmferry.api.dependencies import Connect, TheHosts, TheJobs, TheLife
from vmferry.api.requests import MoveBody
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import Plan, Vm
from vmferry.process.version import VERSION

router = APIRouter(tags=["looking"])


@router.get("/health")
def health(jobs: TheJobs) -> Health:
    """Return version, process id and jobs in flight; answers as soon as jobs can run."""
    return Health(VERSION, os.getpid(), jobs.state, jobs.in_flight())


@router.post("/leave")
async def leave(life: TheLife) -> LeaveAnswer:
    """Leave, for a worker of another version, unless a job is in flight or another request is open."""
    return LeaveAnswer(await life.leave_if_unused(besides=1))


@router.get("/vms")
def vms(connect: Connect, hosts: TheHosts) -> list[Vm]:
    """List all VMs of a host."""
    return list(hosts.open(connect).vms())


@router.get("/vms/{name:path}")
def vm(name: str, connect: Connect, hosts: TheHosts) -> Vm:
    """Return one VM, by its name or UUID."""
    return hosts.open(connect).vm(name)


@router.post("/plans")
def plan(body: MoveBody, jobs: TheJobs) -> Preview:
    """Return the plan of a move, with all findings that stand against it."""
    planned = jobs.plan(body.request())
    return Preview(planned, _in_words(planned))


def _in_words(planned: Plan) -> tuple[PlannedStep, ...]:
    strategy = STRATEGIES[planned.technology]
    return tuple(
        PlannedStep(step.name, step.says, no_return=step.name == strategy.point_of_no_return) for step in strategy.steps
    )
