"""The API's client for notices."""

from __future__ import annotations

from urllib.parse import quote

from vmferry.api.client.client import Client
from vmferry.api.codec import from_json, to_json
from vmferry.model import NoticeView, Notifying, Receivers


class NoticeClient(Client):
    """Client for notices and their receivers. Raises what Client raises."""

    def notifying(self) -> Notifying:
        return from_json(Notifying, self._call("GET", "notify"))

    def set_receivers(self, to: Receivers) -> Notifying:
        return from_json(Notifying, self._call("PUT", "notify", json=to_json(to)))

    def test_receivers(self) -> list[NoticeView]:
        return [from_json(NoticeView, notice) for notice in self._call("POST", "notify/test")]

    def event(self, event_id: str) -> list[NoticeView]:
        found = self._call("GET", f"notify/events/{quote(event_id, safe='')}")
        return [from_json(NoticeView, notice) for notice in found]
