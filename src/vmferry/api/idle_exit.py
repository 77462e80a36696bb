"""Decides when a worker may leave: nothing in flight, nobody connected, for long enough."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vmferry.api.codec import Problem, to_json

LEAVING = Problem("Leaving", "this worker is leaving: ask again, a new one will answer", 1, {})


class IdleExit:
    """Counts open requests. Lives in the event loop's thread, so that no request slips in while it decides.

    `in_flight` may block and is called in a thread; `stop` ends the server.
    """

    def __init__(self, idle_s: float | None, in_flight: Callable[[], int], stop: Callable[[], None]) -> None:
        self.leaving = False
        self._idle_s = idle_s
        self._in_flight = in_flight
        self._stop = stop
        self._here = 0
        self._arrivals = 0
        self._last = time.monotonic()

    def arrive(self) -> None:
        self._here += 1
        self._arrivals += 1

    def depart(self) -> None:
        self._here -= 1
        self._last = time.monotonic()

    def leave(self) -> None:
        """Refuse all further requests, end the streams, and stop the server."""
        self.leaving = True
        self._stop()

    async def leave_if_unused(self, besides: int = 0) -> bool:
        """Leave unless a job is in flight or more than `besides` requests are open. Return whether it leaves."""
        arrivals = self._arrivals
        if self._here > besides or await asyncio.to_thread(self._in_flight) > 0:
            return False
        if self._here > besides or self._arrivals != arrivals:
            return False  # somebody came while we looked
        self.leave()
        return True

    async def watch(self) -> None:
        """Leave when the idle time has passed; without an idle time, never."""
        if self._idle_s is None:
            return
        while not self.leaving:
            await asyncio.sleep(min(1.0, self._idle_s / 4))
            if time.monotonic() - self._last >= self._idle_s:
                await self.leave_if_unused()


class LeaveMiddleware:
    """Counts requests in and out, and refuses them once the worker leaves."""

    def __init__(self, app: ASGIApp, life: IdleExit) -> None:
        self._app = app
        self._life = life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._life.leaving:
            await JSONResponse(to_json(LEAVING), status_code=503)(scope, receive, send)
        else:
            self._life.arrive()
            try:
                await self._app(scope, receive, send)
            finally:
                self._life.depart()
