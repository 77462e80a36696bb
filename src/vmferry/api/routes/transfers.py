"""Routes for transfers."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query

from vmferry.api.dependencies import TheTransfers
from vmferry.api.requests import PriorityBody, RateBody, TransferBody
from vmferry.api.routes.jobs import watchers
from vmferry.model.names import ID
from vmferry.model.transfers import TransferSeen, TransferView

LONGEST_WAIT_S = 10.0

router = APIRouter(tags=["transfers"])


@router.put("/transfers/{id}", status_code=201)
def submit(id: Annotated[str, Path(pattern=f"^{ID}$")], body: TransferBody, transfers: TheTransfers) -> TransferView:
    """Queue a transfer under an id that the client chose; a repeated request returns the existing one."""
    return transfers.submit(id, body.request())


@router.get("/transfers")
def all_transfers(transfers: TheTransfers) -> list[TransferView]:
    """List all transfers, newest first."""
    return list(transfers.list())


@router.get("/transfers/{transfer}")
def one_transfer(transfer: str, transfers: TheTransfers) -> TransferView:
    """Return one transfer, by its id or the first letters of it."""
    return transfers.get(transfer)


TheTransfer = Annotated[TransferView, Depends(one_transfer)]


@router.get("/transfers/{transfer}/seen")
async def seen(found: TheTransfer, after: Annotated[int, Query(ge=0)], transfers: TheTransfers) -> TransferSeen:
    """Return the transfer once its version differs from `after`, or after a while."""
    return TransferSeen(*await run_sync(transfers.changed, found.id, after, LONGEST_WAIT_S, limiter=watchers))


@router.get("/transfers/{transfer}/receipt")
def receipt(found: TheTransfer, transfers: TheTransfers) -> dict[str, Any]:
    """Return the receipt of an acknowledged transfer, as `vmferry copy --json` prints it."""
    return transfers.receipt(found.id)


@router.post("/transfers/{transfer}/suspend")
def suspend(found: TheTransfer, transfers: TheTransfers) -> TransferView:
    """Stop the transfer until it is resumed."""
    return transfers.suspend(found.id)


@router.post("/transfers/{transfer}/resume")
def resume(found: TheTransfer, transfers: TheTransfers) -> TransferView:
    """Queue a transfer again that is suspended or met an error."""
    return transfers.resume(found.id)


@router.post("/transfers/{transfer}/cancel")
def cancel(found: TheTransfer, transfers: TheTransfers) -> TransferView:
    """Cancel the transfer and remove all that it made; returns at once."""
    return transfers.cancel(found.id)


@router.post("/transfers/{transfer}/acknowledge")
def acknowledge(found: TheTransfer, transfers: TheTransfers) -> TransferView:
    """Give the destination of a transferred transfer its final name."""
    return transfers.acknowledge(found.id)


@router.post("/transfers/{transfer}/limit")
def limit(found: TheTransfer, body: RateBody, transfers: TheTransfers) -> TransferView:
    """Change the transfer's limit, even while it runs."""
    return transfers.limit(found.id, body.limit_bytes_s)


@router.post("/transfers/{transfer}/priority")
def prefer(found: TheTransfer, body: PriorityBody, transfers: TheTransfers) -> TransferView:
    """Change the transfer's priority, even while it runs."""
    return transfers.prefer(found.id, body.priority)
