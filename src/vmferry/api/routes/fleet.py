"""Routes for hosts and storages."""

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
    """List all hosts, with the state that each reports."""
    return fleet.hosts()


@router.post("/hosts", status_code=201)
def add(body: HostBody, fleet: TheFleet) -> HostView:
    """Add a host: its agent joins with a one-time token."""
    return fleet.add(body.name, body.address, body.token, body.also)


@router.get("/hosts/{host}")
def one_host(host: str, fleet: TheFleet) -> HostView:
    """Return one host, by its name."""
    return fleet.show(host)


@router.post("/hosts/{host}/revoke")
def revoke(host: str, fleet: TheFleet) -> HostView:
    """Revoke a host's certificates, so that nobody trusts it any more."""
    return fleet.revoke(host)


@router.delete("/hosts/{host}")
def remove(host: str, fleet: TheFleet, jobs: TheJobs) -> None:
    """Remove a host, unless a job needs it."""
    busy = [job.id for job in jobs.list() if host in (job.plan.connect, job.plan.to) and job.state in ACTIVE]
    if busy:
        raise HostBusy(host=host, jobs=", ".join(busy))
    fleet.remove(host)


@router.get("/storages")
def all_storages(fleet: TheFleet) -> list[StorageView]:
    """List the storages of all hosts."""
    return fleet.storages()


@router.post("/storages", status_code=201)
def add_storage(body: StorageBody, fleet: TheFleet) -> StorageView:
    """Have a host serve a storage."""
    return fleet.add_storage(body.name, body.host, body.path, body.grade)


@router.delete("/storages/{storage}")
def remove_storage(storage: str, host: Annotated[str, Query(max_length=63)], fleet: TheFleet) -> None:
    """Have a host stop serving a storage; what lies there stays."""
    fleet.remove_storage(storage, host)
