"""Routes for jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Annotated

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse

from vmferry.api.codec import Event
from vmferry.api.dependencies import Connect, TheJobs, TheLife
from vmferry.api.requests import LimitBody, MoveBody, PriorityBody, ResolveBody
from vmferry.errors import StoreAway
from vmferry.model import FINAL, JobState, JobView, Receipt

WAIT_S = 1.0
"""A stream looks so often whether its reader or the worker has left."""

BETWEEN_EVENTS_S = 0.1
"""A copy reports each piece; nobody sees more than ten changes a second."""
MOST_WATCHERS = 256
"""Each holds a thread; apart from those that answer requests, so that a request never waits for a watcher."""
ENDED = FINAL | {JobState.STUCK}

watchers = CapacityLimiter(MOST_WATCHERS)
router = APIRouter(tags=["jobs"])


@router.post("/jobs", status_code=201)
def submit(body: MoveBody, jobs: TheJobs) -> JobView:
    """Plan, check and submit a move; returns once it is durable."""
    return jobs.submit(body.request())


@router.get("/jobs")
def all_jobs(jobs: TheJobs) -> list[JobView]:
    """List all jobs, newest first, without their journals."""
    return list(jobs.list())


@router.get("/jobs/{job}")
def one_job(job: str, jobs: TheJobs) -> JobView:
    """Return one job, by its id or the first letters of it."""
    return jobs.get(job)


TheJob = Annotated[JobView, Depends(one_job)]


@router.get("/jobs/{job}/events", response_class=EventSourceResponse)
async def events(found: TheJob, jobs: TheJobs, life: TheLife) -> AsyncIterable[Event]:
    """Stream the job as it is, then each change, until it is final or stuck, or the worker leaves."""
    seen, view = await run_sync(jobs.changed, found.id, 0, 0.0, limiter=watchers)
    yield Event.of(view)
    while view.state not in ENDED and not life.leaving:
        await asyncio.sleep(BETWEEN_EVENTS_S)
        try:
            newest, view = await run_sync(jobs.changed, view.id, seen, WAIT_S, limiter=watchers)
        except StoreAway:  # the job waits for it as well
            await asyncio.sleep(WAIT_S)
            continue
        if newest != seen:
            seen = newest
            yield Event.of(view)


@router.post("/jobs/{job}/cancel")
def cancel(found: TheJob, jobs: TheJobs) -> JobView:
    """Ask for the job to be undone; returns at once."""
    return jobs.cancel(found.id)


@router.post("/jobs/{job}/suspend")
def suspend(found: TheJob, jobs: TheJobs) -> JobView:
    """Have the job stand still as soon as it copies; returns at once."""
    return jobs.suspend(found.id)


@router.post("/jobs/{job}/resume")
def resume(found: TheJob, jobs: TheJobs) -> JobView:
    """Let a suspended job go on."""
    return jobs.resume(found.id)


@router.post("/jobs/{job}/limit")
def limit(found: TheJob, body: LimitBody, jobs: TheJobs) -> JobView:
    """Change the job's limits while it runs; what the body leaves out stays."""
    asked = body.model_dump(exclude_unset=True)
    return jobs.limit(found.id, **asked)


@router.post("/jobs/{job}/priority")
def prefer(found: TheJob, body: PriorityBody, jobs: TheJobs) -> JobView:
    """Change the job's priority, in the queue and at the storages that it shares with others."""
    return jobs.prefer(found.id, body.priority)


@router.post("/jobs/{job}/retry")
def retry(found: TheJob, jobs: TheJobs) -> JobView:
    """Let a stuck job try its step again; an undone or failed one is submitted as a new job."""
    return jobs.retry(found.id)


@router.post("/jobs/{job}/resolve")
def resolve(found: TheJob, body: ResolveBody, jobs: TheJobs) -> JobView:
    """Declare the host other than `vm_is_at` lost, in a move to another host: it is asked nothing any more."""
    return jobs.resolve(found.id, body.vm_is_at, body.vm)


@router.get("/jobs/{job}/receipt")
def receipt(found: TheJob, jobs: TheJobs) -> Receipt:
    """Return the receipt of a finished job."""
    return jobs.receipt(found.id)


@router.post("/recover")
def recover(jobs: TheJobs) -> list[JobView]:
    """List the jobs that this worker found in flight when it started, and those that are now; returns at once."""
    found = {view.id: view for view in jobs.recover(timeout_s=0)}
    active = {view.id: view for view in jobs.list() if view.state not in FINAL}
    return list((found | active).values())


@router.get("/leftovers")
def leftovers(connect: Connect, jobs: TheJobs) -> list[str]:
    """List files and placeholders that jobs left on a host and no job in flight needs."""
    return list(jobs.leftovers(connect))


@router.delete("/leftovers")
def reap(connect: Connect, jobs: TheJobs) -> list[str]:
    """Remove what jobs left on a host and no job in flight needs; returns what was removed."""
    return list(jobs.reap(connect))
