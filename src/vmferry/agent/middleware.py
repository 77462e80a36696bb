"""Middleware that refuses requests which the peer's certificate, or its protocol version, does not allow."""

from __future__ import annotations

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmferry.agent.error_responses import LARGEST_BODY, mismatch
from vmferry.agent.listening import PEER
from vmferry.agent.metrics import REFUSED
from vmferry.agent.peer_policy import PeerPolicy
from vmferry.errors import AgentVersionMismatch, PeerRefused, RequestTooLarge, VmferryError
from vmferry.hosts.remote.client import DUE_HEADER, REVOCATIONS_HEADER, VERSION_HEADER
from vmferry.hosts.wire import PROTOCOL, dump_error

log = structlog.get_logger()

STATUS = {PeerRefused: 403, AgentVersionMismatch: 426, RequestTooLarge: 413}


class AgentMiddleware:
    """Checks each request, and adds headers with protocol, revocation list and certificate state to each answer."""

    def __init__(self, app: ASGIApp, name: str, trust: PeerPolicy) -> None:
        self._app = app
        self._name = name
        self._trust = trust

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[VERSION_HEADER] = str(PROTOCOL)
                headers[REVOCATIONS_HEADER] = str(self._trust.revocations)
                headers[DUE_HEADER] = "due" if self._trust.due else "good"
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, _bounded(receive), sign)
        else:
            status = next(status for kind, status in STATUS.items() if isinstance(refused, kind))
            await JSONResponse(dump_error(refused), status, {"connection": "close"})(scope, receive, sign)

    def _refused(self, scope: Scope) -> VmferryError | None:
        peer = scope["state"].get(PEER)
        if reason := self._trust.against(peer, scope["path"]):
            return self._refuse(PeerRefused(host=self._name, reason=reason), peer)
        theirs = Headers(scope=scope).get(VERSION_HEADER)
        if scope["path"].startswith("/v1/") and theirs != str(PROTOCOL):
            return self._refuse(mismatch(self._name, theirs), peer)
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > LARGEST_BODY:
            return self._refuse(RequestTooLarge(most=LARGEST_BODY), peer)
        return None

    def _refuse(self, error: VmferryError, peer: object) -> VmferryError:
        REFUSED.labels(type(error).__name__).inc()
        log.warning("a request was refused", sentence=str(error), peer=str(peer))
        return error


def _bounded(receive: Receive) -> Receive:
    """Return `receive` with a limit on the body: a body of unknown length is refused where it becomes too long."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > LARGEST_BODY:
            raise HTTPException(413, headers={"connection": "close"})
        return message

    return bounded
