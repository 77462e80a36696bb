"""Turns every error of a request into one JSON shape, Problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vmferry import errors
from vmferry.api.codec import Problem, to_json

log = structlog.get_logger()

STATUS: Mapping[type[errors.VmferryError], int] = {
    errors.NoSuchVm: 404,
    errors.NoSuchDisk: 404,
    errors.NoSuchJob: 404,
    errors.NoSuchTransfer: 404,
    errors.NoSuchHost: 404,
    errors.NoSuchStorage: 404,
    errors.WrongState: 409,
    errors.TransferWrongState: 409,
    errors.UsageError: 400,
    errors.HostUnreachable: 503,
    errors.StoreAway: 503,
    errors.TransferElsewhere: 409,
    errors.HostRefused: 502,
}
STATUS_BY_EXIT_CODE = {2: 400, 3: 409, 4: 409, 5: 409}


def install(app: FastAPI, log_path: Path) -> None:
    """Answer every error with a Problem; an unexpected one names the log."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.VmferryError)
        return answer(error)

    async def wrong_body(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(errors.BadRequest(reason=in_words(error.errors())), status=422)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(errors.BadRequest(reason=error.detail), status=error.status_code)

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed in a way nobody foresaw", path=request.url.path, exc_info=error)
        return answer(errors.Unforeseen(reason=type(error).__name__, log=log_path), status=500)

    app.add_exception_handler(errors.VmferryError, known)
    app.add_exception_handler(RequestValidationError, wrong_body)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)


def answer(error: errors.VmferryError, status: int | None = None) -> JSONResponse:
    problem = Problem(
        kind=type(error).__name__,
        sentence=str(error),
        exit_code=error.exit_code,
        fields={name: str(value) for name, value in error.fields.items()},
    )
    return JSONResponse(to_json(problem), status_code=status or _status(error))


def in_words(wrong: Sequence[Any]) -> str:
    """Return Pydantic's findings as one clause: "max_pause_s should be greater than 0"."""
    return "; ".join(_finding(item) for item in wrong)


def _finding(item: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"][1:])  # the first says only: in the body
    what = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return f"{where} {what}".strip()


def _status(error: errors.VmferryError) -> int:
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return STATUS_BY_EXIT_CODE.get(error.exit_code, 500)
