"""How much of a long list a run takes: `make check` sets VMFERRY_SAMPLE, and takes each n-th of what CI takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

SAMPLE = max(1, int(os.environ.get("VMFERRY_SAMPLE", "1")))

T = TypeVar("T")


def fewer(count: int) -> int:
    """So many, or the n-th part of it, and one at least."""
    return max(1, count // SAMPLE)


def sampled(cases: Sequence[T]) -> Sequence[T]:
    """Each n-th of them, the first one with it."""
    return cases[::SAMPLE]
