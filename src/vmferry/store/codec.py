"""Frozen records to JSON text and back."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

_ADAPTERS: dict[object, TypeAdapter[Any]] = {}


def dump(record: object) -> str:
    """JSON of a record, under the names that Python has for its fields."""
    return _adapter(type(record)).dump_json(record, by_alias=False).decode()


def load(kind: type[T], text: str) -> T:
    """The record of that kind. Raises pydantic.ValidationError."""
    record: T = _adapter(kind).validate_json(text, by_alias=False, by_name=True)
    return record


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
