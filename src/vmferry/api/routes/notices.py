"""Requests about who is told of what becomes of jobs and transfers."""

from __future__ import annotations

from fastapi import APIRouter

from vmferry.api.dependencies import TheCourier
from vmferry.api.requests import ReceiversBody
from vmferry.model import NoticeView, Notifying

router = APIRouter(tags=["notices"])


@router.get("/notify")
def receivers(courier: TheCourier) -> Notifying:
    """Who is told of everything, and how the last notices went."""
    return courier.look()


@router.put("/notify")
def set_receivers(body: ReceiversBody, courier: TheCourier) -> Notifying:
    """From now on these are told of everything, and no others; jobs and transfers may have more of their own."""
    return courier.set_receivers(body.receivers())


@router.post("/notify/test")
def test(courier: TheCourier) -> list[NoticeView]:
    """Tell them that this is a test, once; returns at once."""
    return list(courier.test())


@router.get("/notify/events/{event_id}")
def event(event_id: str, courier: TheCourier) -> list[NoticeView]:
    """How one event went, for each receiver."""
    return list(courier.of_event(event_id))
