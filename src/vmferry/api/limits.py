"""Requests about limits that jobs share."""

from __future__ import annotations

from fastapi import APIRouter

from vmferry.api.bodies import SharedLimitBody
from vmferry.api.parts import TheJobs
from vmferry.model import SharedLimit

router = APIRouter(tags=["limits"])


@router.get("/limits")
def all_limits(jobs: TheJobs) -> list[SharedLimit]:
    """Of hosts and storages, as they were set."""
    return list(jobs.limits.all())


@router.put("/limits")
def set_limit(body: SharedLimitBody, jobs: TheJobs) -> SharedLimit:
    """Set one, for the jobs that run and those that come."""
    return jobs.limits.set(body.limit())
