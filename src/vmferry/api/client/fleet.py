"""The API's client for hosts and storages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from vmferry.api.client.client import Client
from vmferry.api.codec import from_json
from vmferry.model.fleet import HostView, StorageView


class FleetClient(Client):
    """Client for hosts and storages. Raises what Client raises."""

    def add_host(self, name: str, address: str, token: str, also: Sequence[str]) -> HostView:
        """Add a host; sent only once, since its token is good only once: if the worker dies, it is not repeated."""
        self._meet()
        body = {"name": name, "address": address, "token": token, "also": list(also)}
        return from_json(HostView, self._once("POST", "hosts", json=body))

    def hosts(self) -> list[HostView]:
        return [from_json(HostView, found) for found in self._call("GET", "hosts")]

    def host(self, name: str) -> HostView:
        return from_json(HostView, self._call("GET", f"hosts/{quote(name, safe='')}"))

    def revoke_host(self, name: str) -> HostView:
        return from_json(HostView, self._call("POST", f"hosts/{quote(name, safe='')}/revoke"))

    def remove_host(self, name: str) -> None:
        self._call("DELETE", f"hosts/{quote(name, safe='')}")

    def add_storage(self, name: str, host: str, path: Path, grade: str) -> StorageView:
        body = {"name": name, "host": host, "path": str(path), "grade": grade}
        return from_json(StorageView, self._call("POST", "storages", json=body))

    def storages(self) -> list[StorageView]:
        return [from_json(StorageView, found) for found in self._call("GET", "storages")]

    def remove_storage(self, name: str, host: str) -> None:
        self._call("DELETE", f"storages/{quote(name, safe='')}", params={"host": host})
