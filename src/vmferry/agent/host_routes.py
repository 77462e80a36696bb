"""Calls of the host's protocol: one route for all its methods, answered in lines of JSON.

A long call sends a line every second or two, so that silence means that the agent is away. The last
line is the answer or the error.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import structlog
from anyio import CancelScope, CapacityLimiter
from anyio.to_thread import run_sync
from blake3 import blake3
from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vmferry.agent.error_responses import misread
from vmferry.agent.metrics import CALLS as COUNTED
from vmferry.agent.metrics import FENCED, MOVED, OPERATIONS
from vmferry.agent.operation import Operation
from vmferry.agent.operations import Operations
from vmferry.agent.path_policy import PathPolicy
from vmferry.errors import AgentFailed, BadRequest, Cancelled, Superseded, VmferryError
from vmferry.errors.system import in_words
from vmferry.hosts.interface import Hosts
from vmferry.hosts.wire import CALLS, Call, Json, dump_error, ends
from vmferry.model import FencingToken
from vmferry.transfer import Transfer, Watch

log = structlog.get_logger()
router = APIRouter(prefix="/v1", tags=["host"])

TICK_S = 0.25
"""A long call says so often how far it is."""
ALIVE_S = 1.0
MOST_LOOKS = 64
LINES = "application/x-ndjson"


class TokenBody(BaseModel):
    """Fencing token: the job that calls, and its epoch."""

    model_config = ConfigDict(extra="forbid")

    job: Annotated[str, Field(min_length=1, max_length=64)]
    epoch: Annotated[int, Field(ge=0)]


class CallBody(BaseModel):
    """A call of a host's method: fencing token and arguments."""

    model_config = ConfigDict(extra="forbid")

    token: TokenBody | None
    arguments: dict[str, Any]


class OrderBody(BaseModel):
    """An order to a long call: a grant of bytes, a limit, a cancel, or the news that its answer was received."""

    model_config = ConfigDict(extra="forbid")

    granted: Annotated[int, Field(ge=0)] | None = None
    limit_bytes_s: Annotated[int, Field(ge=1)] | None = None
    cancel: bool = False
    heard: bool = False


class HostCallService:
    """Carries out the calls of the host's protocol."""

    def __init__(self, name: str, connect: str, hosts: Hosts, confined: PathPolicy, operations: Operations) -> None:
        self.operations = operations
        self._name = name
        self._connect = connect
        self._hosts = hosts
        self._confined = confined
        self._followers = itertools.count()
        self._looks = CapacityLimiter(MOST_LOOKS)

    def answer(self, call: Call, body: CallBody) -> AsyncGenerator[Json, None]:
        """Start a call and return the lines of its answer. Raises BadRequest."""
        arguments = call.load(body.arguments)
        token = FencingToken(body.token.job, body.token.epoch) if body.token else None
        if call.looks:
            return self._look(call, token, arguments)
        if token is None:
            raise BadRequest(reason=f"{call.name} acts, and needs a token")
        return self._act(call, token, arguments, _key(call, token, arguments))

    def _called(self, call: Call, token: FencingToken | None, arguments: dict[str, Any], watch: Watch | None) -> Any:
        """Call the host's method, confined to declared storages. Return the answer as it is sent to the manager."""
        try:
            allowed = self._confined.allowed(call, token, arguments)
            if call.watched:
                allowed[call.watched] = watch
            answer = getattr(self._hosts.open(self._connect, token), call.name)(**allowed)
            answered = call.dump_answer(self._confined.told(answer))
        except Superseded:
            FENCED.inc()
            raise
        except BaseException as error:
            COUNTED.labels(call.name, type(error).__name__).inc()
            raise
        COUNTED.labels(call.name, "done").inc()
        return answered

    async def _look(
        self, call: Call, token: FencingToken | None, arguments: dict[str, Any]
    ) -> AsyncGenerator[Json, None]:
        def look() -> Json:
            try:
                return {"answer": self._called(call, token, arguments, None)}
            except VmferryError as error:
                return {"problem": dump_error(error)}
            except Exception as error:  # the border of a request
                log.exception("a look failed in a way nobody foresaw", call=call.name)
                reason = f"{type(error).__name__}: {in_words(error)}"
                return {"problem": dump_error(AgentFailed(host=self._name, reason=reason))}

        looking = asyncio.ensure_future(run_sync(look, limiter=self._looks))
        while not (await asyncio.wait({looking}, timeout=ALIVE_S))[0]:
            yield {}
        yield looking.result()

    async def _act(
        self, call: Call, token: FencingToken, arguments: dict[str, Any], key: str
    ) -> AsyncGenerator[Json, None]:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        follower = next(self._followers)

        def follow(operation: Operation) -> None:
            operation.follow(follower, lambda: _wake(loop, changed))

        def act(watch: Watch) -> Any:
            with OPERATIONS.track_inprogress():
                return self._called(call, token, arguments, _Counted(watch, call.name))

        def begin() -> Operation | VmferryError:
            try:
                return self.operations.begin(token, key, call.name, act, keep=call.watched is not None, follow=follow)
            except Superseded as error:
                FENCED.inc()
                return error
            except VmferryError as error:
                return error

        with CancelScope(shield=True):  # who has begun to follow must be here to leave
            operation = await run_sync(begin)
        if isinstance(operation, VmferryError):
            yield {"problem": dump_error(operation)}
            return
        try:
            if call.watched:
                yield {"operation": key}
            async for line in _said(operation, changed, TICK_S if call.watched else ALIVE_S):
                yield line
        finally:
            operation.leave(follower)


def _key(call: Call, token: FencingToken, arguments: dict[str, Any]) -> str:
    """Return an act's key, the same for any manager: of bookmarks only the path's last two parts count."""
    alike = {name: _alike(value) for name, value in arguments.items()}
    asked = json.dumps([token.job, call.name, call.dump(alike)], sort_keys=True)
    return blake3(asked.encode()).hexdigest()


def _alike(value: Any) -> Any:
    if isinstance(value, Transfer):
        return replace(value, bookmarks=Path(*value.bookmarks.parts[-2:]))
    return [_alike(held) for held in value] if isinstance(value, list) else value


async def _said(operation: Operation, changed: asyncio.Event, tick_s: float) -> AsyncIterator[Json]:
    over = False
    while not over:
        if not operation.over:
            with suppress(TimeoutError):
                async with asyncio.timeout(tick_s):
                    await changed.wait()
        changed.clear()
        over = operation.over
        yield operation.said()


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(changed.set)


class _Counted:
    """A transfer's watch that also counts the bytes for Prometheus."""

    def __init__(self, watch: Watch, method: str) -> None:
        self.check = watch.check
        self.throttle = watch.throttle
        self._watch = watch
        self._counter = MOVED.labels(method)
        self._before = 0

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self._counter.inc(max(0, done_bytes - self._before))
        self._before = done_bytes
        self._watch.moved(done_bytes, total_bytes, rate_bytes_s)


# -- routes


async def _desk(request: Request) -> HostCallService:
    control: HostCallService = request.app.state.control
    return control


TheDesk = Annotated[HostCallService, Depends(_desk)]


async def call(request: Request) -> Response:
    """Call one of the host's methods. A call that ends before its first progress line is answered in one piece."""
    method = request.path_params["method"]
    if method not in CALLS:
        raise BadRequest(reason=f"a host has no method {method}")
    control = await _desk(request)
    lines = control.answer(CALLS[method], _body(await request.body()))
    first = await anext(lines)
    if ends(first):
        await lines.aclose()
        return Response(_text(first), media_type=LINES)
    return StreamingResponse(_as_text(first, lines), media_type=LINES)


# Without FastAPI's reading of signatures, which cost more than most calls do.
router.add_route("/v1/host/{method}", call, methods=["POST"])


def _body(content: bytes) -> CallBody:
    """Parse the body of a call. Raises BadRequest."""
    try:
        return CallBody.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise misread(first["loc"], first["msg"]) from None


async def _as_text(first: Json, further: AsyncIterator[Json]) -> AsyncIterator[str]:
    yield _text(first)
    async for line in further:
        yield _text(line)


def _text(line: Json) -> str:
    return json.dumps(line) + "\n"


@router.post("/operations/{key}")
def order(key: str, body: Annotated[OrderBody, Body()], control: TheDesk) -> Json:
    """Grant, limit or cancel a long call, which may just have ended; or forget its answer, which was received."""
    if body.heard:
        control.operations.forget(key)
        return {}
    operation = control.operations.find(key)
    if operation is not None and body.cancel:
        operation.stop(Cancelled())
    if operation is not None and body.granted is not None:
        operation.grant(body.granted, body.limit_bytes_s)
    return {}
