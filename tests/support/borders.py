"""What an agent would refuse: a call to one host that names a path of the other one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from vmferry.agent.path_policy import ABROAD
from vmferry.hosts.interface import Host
from vmferry.hosts.simulator.driver import SimulatedHost
from vmferry.hosts.wire import CALLS
from vmferry.transfer import Place


class Bordered:
    """A toy host that notes each path in a call that lies in another host's folder. Mappings' keys are only names."""

    def __init__(self, host: SimulatedHost, abroad: Path, violations: list[str]) -> None:
        self._host = host
        self._abroad = abroad
        self._violations = violations

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._host, name)
        if name not in CALLS:
            return found

        def call(*args: object, **kwargs: object) -> Any:
            bound = inspect.signature(found).bind(*args, **kwargs)
            for argument, value in bound.arguments.items():
                for path in _paths(value) if argument not in ABROAD else ():
                    if path.is_relative_to(self._abroad):
                        self._violations.append(f"{self._host.name} is asked to {name} with {path} of another host")
            return found(*args, **kwargs)

        return call


def bordered(host: SimulatedHost, abroad: Path, violations: list[str]) -> Host:
    return cast(Host, Bordered(host, abroad, violations))


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Place):
        yield Path(value.at)
    elif isinstance(value, Mapping):
        yield from (path for held in value.values() for path in _paths(held))
    elif isinstance(value, tuple | list):
        yield from (path for held in value for path in _paths(held))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (path for field in fields(value) for path in _paths(getattr(value, field.name)))
