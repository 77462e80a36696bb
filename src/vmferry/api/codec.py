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
    """A worker that answers."""

    version: str
    pid: int
    state: Path
    in_flight: int


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan, in words."""

    name: str
    says: str
    no_return: bool = False
    """After this step there is no way back."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a job would do."""

    plan: Plan
    steps: tuple[PlannedStep, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """A job as it is after a change, without what never changes."""

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
    """An error on its way to a person: `exit_code` is what the command ends with."""

    kind: str
    sentence: str
    exit_code: int
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class LeaveAnswer:
    """The answer to a request to leave."""

    leaving: bool


def to_json(record: object) -> Any:
    """What json.dumps takes: paths as strings, `from_` as "from"."""
    if isinstance(record, list | tuple):
        return [to_json(item) for item in record]
    return _adapter(type(record)).dump_python(record, mode="json")


def from_json(kind: type[T], data: object) -> T:
    """The record of that kind. Raises pydantic.ValidationError."""
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
