"""Routes for notices about jobs and transfers, and for their receivers."""

from __future__ import annotations

from fastapi import APIRouter

from vmferry.api.dependencies import TheCourier
from vmferry.api.requests import ReceiversBody
from vmferry.model import NoticeView, Notifying

router = APIRouter(tags=["notices"])


@router.get("/notify")
def receivers(delivery: TheCourier) -> Notifying:
    """Return the receivers of all notices, and how the last notices went."""
    return delivery.look()


@router.put("/notify")
def set_receivers(body: ReceiversBody, delivery: TheCourier) -> Notifying:
    """Replace the receivers of all notices; jobs and transfers may have more of their own."""
    return delivery.set_receivers(body.receivers())


@router.post("/notify/test")
def test(delivery: TheCourier) -> list[NoticeView]:
    """Send a test notice to all receivers, once; returns at once."""
    return list(delivery.test())


@router.get("/notify/events/{event_id}")
def event(event_id: str, delivery: TheCourier) -> list[NoticeView]:
    """Return how the notices of one event went, for each receiver."""
    return list(delivery.of_event(event_id))
