"""The services that routes use, as FastAPI injects them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from vmferry.api.idle_exit import IdleExit
from vmferry.hosts.interface import Hosts
from vmferry.manager.fleet.service import Fleet
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.notify.delivery import Delivery
from vmferry.manager.transfers.service import Transfers

# async, so that looking them up does not cost a thread


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


async def _transfers(request: Request) -> Transfers:
    transfers: Transfers = request.app.state.transfers
    return transfers


async def _courier(request: Request) -> Delivery:
    delivery: Delivery = request.app.state.delivery
    return delivery


async def _hosts(request: Request) -> Hosts:
    hosts: Hosts = request.app.state.hosts
    return hosts


async def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


async def _life(request: Request) -> IdleExit:
    life: IdleExit = request.app.state.life
    return life


TheJobs = Annotated[Jobs, Depends(_jobs)]
TheTransfers = Annotated[Transfers, Depends(_transfers)]
TheCourier = Annotated[Delivery, Depends(_courier)]
TheHosts = Annotated[Hosts, Depends(_hosts)]
TheFleet = Annotated[Fleet, Depends(_fleet)]
TheLife = Annotated[IdleExit, Depends(_life)]
Connect = Annotated[str, Query(min_length=1, max_length=2048, description="A libvirt connection URI, or a host's name")]
