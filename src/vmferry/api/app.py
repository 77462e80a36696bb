"""The FastAPI application: the same for the worker's unix socket and, later, for a server with TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from vmferry.api import error_responses
from vmferry.api.idle_exit import IdleExit, LeaveMiddleware
from vmferry.api.routes import cpu as about_cpu
from vmferry.api.routes import fleet as about_fleet
from vmferry.api.routes import jobs as about_jobs
from vmferry.api.routes import limits as about_limits
from vmferry.api.routes import notices as about_notices
from vmferry.api.routes import transfers as about_transfers
from vmferry.api.routes import vms
from vmferry.hosts.interface import Hosts
from vmferry.manager.fleet.service import Fleet
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.notify.delivery import Delivery
from vmferry.manager.transfers.service import Transfers
from vmferry.process.version import VERSION

LARGEST_BODY = 256 << 10
"""256 disks with long paths fit; nothing that a client sends is larger."""


def make_app(
    jobs: Jobs, transfers: Transfers, delivery: Delivery, hosts: Hosts, fleet: Fleet, life: IdleExit, log_path: Path
) -> FastAPI:
    """Build the API over jobs and transfers that have been started."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(life.watch())
        yield
        watch.cancel()

    app = FastAPI(
        title="vmferry",
        version=VERSION,
        lifespan=lifespan,
        max_body_size=LARGEST_BODY,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.transfers, app.state.fleet, app.state.delivery = transfers, fleet, delivery
    app.state.jobs, app.state.hosts, app.state.life = jobs, hosts, life
    app.add_middleware(LeaveMiddleware, life=life)
    app.include_router(vms.router, prefix="/v1")
    app.include_router(about_jobs.router, prefix="/v1")
    app.include_router(about_limits.router, prefix="/v1")
    app.include_router(about_fleet.router, prefix="/v1")
    app.include_router(about_transfers.router, prefix="/v1")
    app.include_router(about_cpu.router, prefix="/v1")
    app.include_router(about_notices.router, prefix="/v1")
    error_responses.install(app, log_path)
    return app
