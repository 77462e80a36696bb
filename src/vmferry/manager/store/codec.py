"""Conversion of frozen records to JSON text and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

_ADAPTERS: dict[object, TypeAdapter[Any]] = {}


def dump(record: object) -> str:
    """Return a record as JSON, under the names that Python has for its fields."""
    return _adapter(type(record)).dump_json(record, by_alias=False).decode()


def load(kind: type[T], text: str) -> T:
    """Return the record of that kind from JSON. Raises pydantic.ValidationError."""
    record: T = _adapter(kind).validate_json(text, by_alias=False, by_name=True)
    return record


def dump_all(records: Sequence[object]) -> str:
    return f"[{','.join(map(dump, records))}]"


def load_all(kind: type[T], text: str) -> tuple[T, ...]:
    """Return the records of that kind from a JSON list. Raises pydantic.ValidationError."""
    records: tuple[T, ...] = _adapter(tuple[kind, ...]).validate_json(text, by_alias=False, by_name=True)  # type: ignore[valid-type]
    return records


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
