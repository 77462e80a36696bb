"""The API's client for transfers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

from vmferry.api.client.client import Client
from vmferry.api.codec import from_json, to_json
from vmferry.model.names import new_id
from vmferry.model.transfers import OVER, TransferRequest, TransferSeen, TransferState, TransferView

ENDED = OVER | {TransferState.TRANSFERRED, TransferState.ERROR}


class TransferClient(Client):
    """Client for transfers. Every request may be sent twice, so a worker that dies in between costs nothing."""

    def submit_transfer(self, request: TransferRequest) -> TransferView:
        """Queue a transfer; it is durable when this returns."""
        return self._transfer("PUT", new_id(), json=to_json(request))

    def transfers(self) -> list[TransferView]:
        return [from_json(TransferView, found) for found in self._call("GET", "transfers")]

    def transfer(self, transfer: str) -> TransferView:
        return self._transfer("GET", transfer)

    def transfer_receipt(self, transfer: str) -> Mapping[str, object]:
        found: Mapping[str, object] = self._call("GET", f"transfers/{quote(transfer, safe='')}/receipt")
        return found

    def order(self, transfer: str, order: str) -> TransferView:
        """Give a transfer an order: suspend, resume, cancel or acknowledge."""
        return self._transfer("POST", transfer, f"/{order}")

    def limit_transfer(self, transfer: str, limit_bytes_s: int | None) -> TransferView:
        return self._transfer("POST", transfer, "/limit", json={"limit_bytes_s": limit_bytes_s})

    def prefer_transfer(self, transfer: str, priority: str) -> TransferView:
        return self._transfer("POST", transfer, "/priority", json={"priority": priority})

    def watch_transfer(self, transfer: str) -> Iterator[TransferView]:
        """Yield every change until the transfer has ended, is transferred or needs a person, even if workers die."""
        version, last = 0, None
        while True:
            path = f"transfers/{quote(transfer, safe='')}/seen"
            seen = from_json(TransferSeen, self._call("GET", path, params={"after": version}))
            if seen.transfer != last:
                yield seen.transfer
            if seen.transfer.state in ENDED:
                return
            version, last = seen.version, seen.transfer

    def settled(self, asked: TransferView) -> TransferView:
        """Wait until a transfer that is to be cancelled is cancelled, or says why it is not. Return it."""
        version, found = 0, asked
        while found.state not in OVER and not (found.sentence and found.cancel_asked):
            path = f"transfers/{quote(found.id, safe='')}/seen"
            seen = from_json(TransferSeen, self._call("GET", path, params={"after": version}))
            version, found = seen.version, seen.transfer
        return found

    def _transfer(self, method: str, transfer: str, act: str = "", **what: object) -> TransferView:
        return from_json(TransferView, self._call(method, f"transfers/{quote(transfer, safe='')}{act}", **what))
