"""Marks the methods of a host that only look."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def query(method: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that changes nothing.

    All others act: they carry a token, and an agent carries out those of one job one after another.
    """
    method.__dict__["query"] = True
    return method


def is_query(method: Callable[..., object]) -> bool:
    return method.__dict__.get("query") is True
