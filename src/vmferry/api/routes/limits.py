"""Routes for limits that jobs share."""

from __future__ import annotations

from fastapi import APIRouter

from vmferry.api.dependencies import TheJobs
from vmferry.api.requests import SharedLimitBody
from vmferry.model import LimitView

router = APIRouter(tags=["limits"])


@router.get("/limits")
def all_limits(jobs: TheJobs) -> list[LimitView]:
    """List the limits of hosts and storages, as they were set, with the rate that holds now."""
    return jobs.limits.seen()


@router.put("/limits")
def set_limit(body: SharedLimitBody, jobs: TheJobs) -> LimitView:
    """Set a limit of a host or storage, for running and later jobs."""
    return jobs.limits.view(jobs.limits.change(body.scope, body.connect, body.place, body.onto))
