"""Requests about limits that jobs share."""

from __future__ import annotations

from fastapi import APIRouter

from vmferry.api.dependencies import TheJobs
from vmferry.api.requests import SharedLimitBody
from vmferry.model import LimitView

router = APIRouter(tags=["limits"])


@router.get("/limits")
def all_limits(jobs: TheJobs) -> list[LimitView]:
    """Of hosts and storages, as they were set, with what holds now."""
    return jobs.limits.seen()


@router.put("/limits")
def set_limit(body: SharedLimitBody, jobs: TheJobs) -> LimitView:
    """Set one, for the jobs that run and those that come."""
    return jobs.limits.view(jobs.limits.change(body.scope, body.connect, body.place, body.onto))
