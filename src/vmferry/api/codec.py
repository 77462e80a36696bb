"""Records as JSON: one codec, shared by the API and its client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter

from vmferry import model
from vmferry.model import JobState, JobView, Plan, Progress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Health:
    """The worker's answer that it is alive: its version, process id, state folder and jobs in flight."""

    version: str
    pid: int
    state: Path
    in_flight: int


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan, described in words."""

    name: str
    says: str
    no_return: bool = False
    """After this step there is no way back."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A job's plan and its steps, before it is submitted."""

    plan: Plan
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """A job's changing fields, as they are after a change."""

    job: str
    state: JobState
    progress: Progress
    sentence: str = ""
    kind: str = ""
    limit_bytes_s: int | None = None
    max_pause_s: float = 2.0
    cancel_asked: bool = False
    ended: str | None = None

    @staticmethod
    def of(view: JobView) -> Event:
        return Event(
            job=view.id,
            state=view.state,
            progress=view.progress,
            sentence=view.sentence,
            kind=view.kind,
            limit_bytes_s=view.limit_bytes_s,
            max_pause_s=view.max_pause_s,
            cancel_asked=view.cancel_asked,
            ended=view.ended,
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """An error for a person; `exit_code` is what the command ends with."""

    kind: str
    sentence: str
    exit_code: int
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class LeaveAnswer:
    """The answer to a request to leave: whether the worker leaves."""

    leaving: bool


def to_json(record: object) -> Any:
    """Return the record as json.dumps takes it: paths as strings, the field `from_` as "from"."""
    if isinstance(record, list | tuple):
        return [to_json(item) for item in record]
    return _adapter(type(record)).dump_python(record, mode="json")


def from_json(kind: type[T], data: object) -> T:
    """Return the record of that kind from its JSON. Raises pydantic.ValidationError."""
    record: T = _adapter(kind).validate_python(data)
    return record


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _name_as_people_do(records: Iterable[type[Any]]) -> None:
    """Let fields whose name Python reserves (`from_`) travel under the plain one, here and in OpenAPI."""
    config = ConfigDict(alias_generator=lambda name: name.rstrip("_"), serialize_by_alias=True)
    for record in records:
        if any(field.name.endswith("_") for field in fields(record)):
            record.__pydantic_config__ = config


_name_as_people_do(r for r in vars(model).values() if isinstance(r, type) and is_dataclass(r))
