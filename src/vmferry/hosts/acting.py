"""Acts in a job's name: refused when a newer epoch of the same job has acted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Admits(Protocol):
    def admit(self) -> None:
        """Raises Superseded."""


H = TypeVar("H", bound=Admits)
P = ParamSpec("P")
R = TypeVar("R")


def fenced(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """Admit the caller first."""

    @functools.wraps(method)
    def admitted(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.admit()
        return method(self, *args, **kwargs)

    return admitted
