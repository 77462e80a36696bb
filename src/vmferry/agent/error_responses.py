"""Errors of an agent's routes as JSON, by name and fields, from which the manager raises the same class again."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vmferry.errors import AgentFailed, AgentVersionMismatch, BadRequest, RequestTooLarge, UsageError, VmferryError
from vmferry.hosts.wire import PROTOCOL, dump_error

log = structlog.get_logger()

LARGEST_BODY = 1 << 20
"""A VM of a thousand disks fits."""


def install(app: FastAPI, host: str) -> None:
    async def known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, VmferryError)
        return JSONResponse(dump_error(error), 400 if isinstance(error, UsageError) else 409)

    async def wrong_body(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse(dump_error(misread(first["loc"][1:], first["msg"])), 422)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 413:
            return JSONResponse(dump_error(RequestTooLarge(most=LARGEST_BODY)), 413, error.headers)
        return JSONResponse(dump_error(BadRequest(reason=error.detail)), error.status_code)

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed in a way nobody foresaw", path=request.url.path, exc_info=error)
        return JSONResponse(dump_error(AgentFailed(host=host, reason=type(error).__name__)), 500)

    app.add_exception_handler(VmferryError, known)
    app.add_exception_handler(RequestValidationError, wrong_body)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)


def misread(where: Sequence[object], why: str) -> BadRequest:
    """Return the error for an invalid request body: the path to the wrong field, and pydantic's message."""
    return BadRequest(reason=f"{'.'.join(map(str, where))} {why}".strip())


def mismatch(host: str, asked: str | None) -> AgentVersionMismatch:
    """Return the error for a manager of another protocol version; for its reader, the manager's version is `ours`."""
    number = int(asked) if asked and asked.isdecimal() else 0
    older = "the manager" if number < PROTOCOL else host
    return AgentVersionMismatch(host=host, theirs=PROTOCOL, ours=asked or "none", older=older)
