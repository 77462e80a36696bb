"""Delivers a notice by POST, as standardwebhooks.com has it.

Headers: webhook-id, webhook-timestamp, webhook-signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import ssl
import time
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import anyio
import httpx

from vmferry.errors import NotTold
from vmferry.manager.store.notices import Notice

DEADLINE_S = 20.0
_CLOSING_POLL_S = 0.25
"""Between two looks whether this process is about to end, while a server is waited for."""
_PREFIX = "whsec_"

logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each URL whole


def post(notice: Notice, closing: Event, deadline_s: float = DEADLINE_S) -> None:
    """Post a notice once, within `deadline_s`. Raises NotTold unless the answer is 2xx; follows no redirect."""
    try:
        headers = _headers(notice)
        code = anyio.run(_within, notice, headers, closing, deadline_s)
    except TimeoutError:
        raise NotTold(to=notice.to, reason=f"no answer within {deadline_s:g} s") from None
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        # `from None`: some of these errors carry the URL, and the log prints causes
        raise NotTold(to=notice.to, reason=_reason(error, notice)) from None
    if 300 <= code < 400:
        raise NotTold(to=notice.to, reason=f"it answered {code}, and a redirect is not followed")
    if not 200 <= code < 300:
        raise NotTold(to=notice.to, reason=f"it answered {code}")


def url(text: str) -> str | None:
    """Say what is wrong with a URL, None if nothing is."""
    try:
        parts = urlsplit(text)
        httpx.URL(text)
        _ = parts.port
    except (ValueError, httpx.InvalidURL) as error:
        return f"it is no URL: {error}"
    if parts.scheme not in ("http", "https"):
        return "it is neither http:// nor https://"
    if not parts.hostname:
        return "it names no host"
    return None


def key(secret: Path) -> bytes:
    """Return the key in a file: base64 after whsec_, or any other text as it is. Raises OSError, ValueError."""
    text = secret.read_text().strip()
    if not text:
        raise ValueError(f"{secret} is empty")
    if not text.startswith(_PREFIX):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"{secret} begins with {_PREFIX} and goes on with what is no base64") from None


def signature(secret: bytes, event_id: str, timestamp: str, body: bytes) -> str:
    """Return the HMAC-SHA256 of "id.timestamp.body", in base64 after "v1,"."""
    signed = b".".join((event_id.encode(), timestamp.encode(), body))
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


def _headers(notice: Notice) -> dict[str, str]:
    timestamp = str(int(time.time()))
    headers = {
        "content-type": "application/json",
        "user-agent": "vmferry",
        "webhook-id": notice.event_id,
        "webhook-timestamp": timestamp,
    }
    if notice.secret:
        body = notice.body.encode()
        headers["webhook-signature"] = signature(key(Path(notice.secret)), notice.event_id, timestamp, body)
    return headers


async def _within(notice: Notice, headers: dict[str, str], closing: Event, deadline_s: float) -> int:
    """Post a notice within the deadline, and return the answer's status. Raises TimeoutError.

    httpx bounds each read, not the whole: a server that sends a byte now and then would hold us.
    """
    with anyio.fail_after(deadline_s):
        codes: list[int] = []
        errors: list[Exception] = []
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                try:
                    codes.append(await _status(notice, headers, deadline_s))
                except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
                    errors.append(error)
                group.cancel_scope.cancel()

            group.start_soon(ask)
            while not closing.is_set():
                await anyio.sleep(_CLOSING_POLL_S)
            group.cancel_scope.cancel()
    if errors:
        raise errors[0]
    if not codes:
        raise OSError("the worker leaves")
    return codes[0]


async def _status(notice: Notice, headers: dict[str, str], deadline_s: float) -> int:
    """Post a notice, and return the answer's status; its body is not read. The system's trusted certificates count."""
    context = ssl.create_default_context()
    async with (
        httpx.AsyncClient(verify=context, follow_redirects=False, timeout=deadline_s) as client,
        client.stream("POST", notice.receiver, content=notice.body.encode(), headers=headers) as reply,
    ):
        return reply.status_code


def _reason(error: Exception, notice: Notice) -> str:
    return (str(error) or type(error).__name__).replace(notice.receiver, notice.to)
