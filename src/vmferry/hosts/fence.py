"""Keeps a worker that was frozen, and woke up after another took its jobs over, from acting on a host."""

from __future__ import annotations

import fcntl
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vmferry.durable import write
from vmferry.errors import Superseded
from vmferry.model import FencingToken

KEPT_JOBS = 1000
"""The most jobs that are remembered; beyond that those whose epoch was recorded longest ago are forgotten."""


class Fence:
    """The highest epoch seen of each job, durable, shared by all processes that use the same folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "epochs.json"
        self._lock = folder / "epochs.lock"

    def admit(self, token: FencingToken) -> None:
        """Return if no newer epoch of the job was admitted before, durably remembering this one.

        Raises Superseded. An epoch that is already remembered costs one read.
        """
        with self._locked():
            epochs = self._read()
            newest = epochs.get(token.job, 0)
            if token.epoch < newest:
                raise Superseded(job=token.job, epoch=token.epoch, newest=newest)
            if token.epoch > newest:
                epochs.pop(token.job, None)
                epochs[token.job] = token.epoch
                self._write(dict(list(epochs.items())[-KEPT_JOBS:]))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, int]:
        try:
            epochs: dict[str, int] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return epochs

    def _write(self, epochs: dict[str, int]) -> None:
        """Replace the file whole: a crash leaves the old one or the new one."""
        write(self._file, json.dumps(epochs).encode())


class Admits(Protocol):
    def admit(self) -> None:
        """Return if this host may act for its job. Raises Superseded when a newer epoch of the job has acted."""


H = TypeVar("H", bound=Admits)
P = ParamSpec("P")
R = TypeVar("R")


def fenced(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """Mark a host's method that acts for a job: it raises Superseded once a newer epoch of the job has acted."""

    @functools.wraps(method)
    def admitted(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.admit()
        return method(self, *args, **kwargs)

    return admitted
