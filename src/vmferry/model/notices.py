"""Receivers of news about jobs and transfers, and how delivery to them went."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Receivers:
    """The receivers of notices: a command, a webhook, both or neither."""

    command: str = ""
    """A program and its arguments, as a shell would split them; no shell runs it."""
    url: str = ""
    secret: Path | None = None
    """A file whose content signs what the webhook gets."""


NOBODY = Receivers()


class Channel(StrEnum):
    COMMAND = "command"
    URL = "url"


class NoticeState(StrEnum):
    WAITING = "waiting"
    """Not delivered yet; tried again by itself."""
    DELIVERED = "delivered"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class NoticeView:
    """An event on its way to one receiver, as a person sees it."""

    event_id: str
    event: str
    about: str
    """job or transfer, or test."""
    subject: str
    """The id of that job or transfer."""
    to: str
    """The program, or scheme and host of the URL: what else stands there may be secret."""
    state: NoticeState
    created: str
    tries: int = 0
    sentence: str = ""
    """Why the last try failed."""


@dataclass(frozen=True, slots=True)
class Notifying:
    """The receivers of all events in a state folder (the URL as `told_as` has it), and the newest notices."""

    receivers: Receivers
    notices: tuple[NoticeView, ...]


def told_as(way: Channel, to: str) -> str:
    """Return a receiver's name for places where others may read it: without arguments, path or password."""
    if way is Channel.URL:
        url = urlsplit(to)
        port = f":{url.port}" if url.port else ""
        return f"{url.scheme}://{url.hostname}{port}/..."
    return to.split(maxsplit=1)[0]
