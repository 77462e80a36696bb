"""The API's client for CPU checks, baselines and limits."""

from __future__ import annotations

from collections.abc import Sequence

from vmferry.api.client.client import Client
from vmferry.api.codec import from_json, to_json
from vmferry.model.processors import CpuBaseline, CpuCheck, CpuLimited, CpuLimitRequest


class CpuClient(Client):
    """Client for CPU checks, baselines and limits; every request may be sent twice. Raises what Client raises."""

    def check_cpu(self, vm: str, connect: str, host: str) -> CpuCheck:
        params = {"vm": vm, "connect": connect, "host": host}
        return from_json(CpuCheck, self._call("GET", "cpu/check", params=params))

    def cpu_baseline(self, hosts: Sequence[str], virt: str | None) -> CpuBaseline:
        params = {"host": list(hosts)} | ({"virt": virt} if virt else {})
        return from_json(CpuBaseline, self._call("GET", "cpu/baseline", params=params))

    def limit_cpu(self, request: CpuLimitRequest) -> CpuLimited:
        return from_json(CpuLimited, self._call("PUT", "cpu/limit", json=to_json(request)))
