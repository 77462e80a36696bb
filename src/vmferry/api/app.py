"""The application: the same for the worker's unix socket and, later, for a server with TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from vmferry.api import cpu as about_cpu
from vmferry.api import fleet as about_fleet
from vmferry.api import jobs as about_jobs
from vmferry.api import limits as about_limits
from vmferry.api import looking, problems
from vmferry.api import notices as about_notices
from vmferry.api import transfers as about_transfers
from vmferry.api.life import Door, Life
from vmferry.api.version import VERSION
from vmferry.fleet import Fleet
from vmferry.hosts.protocol import Hosts
from vmferry.jobs import Jobs
from vmferry.notify.courier import Courier
from vmferry.transfers import Transfers

LARGEST_BODY = 256 << 10
"""256 disks with long paths fit; nothing that a client sends is larger."""


def make_app(
    jobs: Jobs, transfers: Transfers, courier: Courier, hosts: Hosts, fleet: Fleet, life: Life, log_path: Path
) -> FastAPI:
    """The API over started jobs and transfers."""

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
    app.state.transfers, app.state.fleet, app.state.courier = transfers, fleet, courier
    app.state.jobs, app.state.hosts, app.state.life = jobs, hosts, life
    app.add_middleware(Door, life=life)
    app.include_router(looking.router, prefix="/v1")
    app.include_router(about_jobs.router, prefix="/v1")
    app.include_router(about_limits.router, prefix="/v1")
    app.include_router(about_fleet.router, prefix="/v1")
    app.include_router(about_transfers.router, prefix="/v1")
    app.include_router(about_cpu.router, prefix="/v1")
    app.include_router(about_notices.router, prefix="/v1")
    problems.install(app, log_path)
    return app
