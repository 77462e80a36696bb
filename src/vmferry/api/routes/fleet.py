"""Requests about hosts and storages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from vmferry.api.dependencies import TheFleet, TheJobs
from vmferry.api.requests import HostBody, StorageBody
from vmferry.errors import HostBusy
from vmferry.model import ACTIVE
from vmferry.model.fleet import HostView, StorageView

router = APIRouter(tags=["hosts"])


@router.get("/hosts")
def all_hosts(fleet: TheFleet) -> list[HostView]:
    """All of them, each asked how it is."""
    return fleet.hosts()


@router.post("/hosts", status_code=201)
def add(body: HostBody, fleet: TheFleet) -> HostView:
    """Let an agent in."""
    return fleet.add(body.name, body.address, body.token, body.also)


@router.get("/hosts/{host}")
def one_host(host: str, fleet: TheFleet) -> HostView:
    """A host, by its name."""
    return fleet.show(host)


@router.post("/hosts/{host}/revoke")
def revoke(host: str, fleet: TheFleet) -> HostView:
    """Have nobody trust it any more."""
    return fleet.revoke(host)


@router.delete("/hosts/{host}")
def remove(host: str, fleet: TheFleet, jobs: TheJobs) -> None:
    """Forget it, unless a job needs it."""
    busy = [job.id for job in jobs.list() if host in (job.plan.connect, job.plan.to) and job.state in ACTIVE]
    if busy:
        raise HostBusy(host=host, jobs=", ".join(busy))
    fleet.remove(host)


@router.get("/storages")
def all_storages(fleet: TheFleet) -> list[StorageView]:
    """Of all hosts."""
    return fleet.storages()


@router.post("/storages", status_code=201)
def add_storage(body: StorageBody, fleet: TheFleet) -> StorageView:
    """Have a host serve one."""
    return fleet.add_storage(body.name, body.host, body.path, body.grade)


@router.delete("/storages/{storage}")
def remove_storage(storage: str, host: Annotated[str, Query(max_length=63)], fleet: TheFleet) -> None:
    """Have a host serve one no longer; what lies there stays."""
    fleet.remove_storage(storage, host)
