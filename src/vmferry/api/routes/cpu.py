"""Routes for CPU checks, baselines and limits."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from vmferry.api.dependencies import Connect
from vmferry.api.requests import CpuLimitBody
from vmferry.manager.fleet.cpu_compatibility import CpuCompatibility
from vmferry.model.processors import CpuBaseline, CpuCheck, CpuLimited

router = APIRouter(tags=["processors"])

HostName = Annotated[str, Query(min_length=1, max_length=2048, description="A host's name or libvirt URI")]


async def _processors(request: Request) -> CpuCompatibility:
    return CpuCompatibility(request.app.state.hosts, request.app.state.jobs.refuse_busy)


TheProcessors = Annotated[CpuCompatibility, Depends(_processors)]


@router.get("/cpu/check")
def check(vm: HostName, connect: Connect, host: HostName, processors: TheProcessors) -> CpuCheck:
    """Check whether a host can run the VM's CPU, with the VM's present state."""
    return processors.check(vm, connect, host)


@router.get("/cpu/baseline")
def baseline(
    host: Annotated[list[HostName], Query(min_length=1, max_length=256)],
    processors: TheProcessors,
    virt: Literal["kvm", "qemu"] | None = None,
) -> CpuBaseline:
    """Return the greatest CPU that all these hosts can give their guests."""
    return processors.baseline(host, virt)


@router.put("/cpu/limit")
def limit(body: CpuLimitBody, processors: TheProcessors) -> CpuLimited:
    """Limit a VM's definition to a CPU that several hosts can run, or restore the CPU that it had before."""
    return processors.limit(body.request())
