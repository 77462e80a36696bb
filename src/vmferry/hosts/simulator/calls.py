"""What every call to the toy host goes through: the guests write, promises are checked, hooks may break it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from vmferry.errors import HostRefused, Superseded
from vmferry.hosts.simulator.world import InFile, InMemory, World
from vmferry.model import FencingToken


class Killed(BaseException):
    """The process ends here, as if by kill -9."""


@dataclass(frozen=True)
class Moment:
    """An instant inside a call."""

    number: int
    """The number of the call that it is in, among all calls of the world."""
    call: str
    when: str
    """before, middle or after its effect"""


Hook = Callable[[Moment, World], None]
"""May raise Killed, or any error of a host, or change the world."""


class Caller:
    """Runs the toy host's calls: within the world's lock, between hooks, and refused to a superseded job."""

    def __init__(
        self,
        ground: InMemory | InFile,
        token: FencingToken | None = None,
        hook: Hook | None = None,
        pace_s: float = 0.0,
        name: str = "memory",
    ) -> None:
        self.name = name
        self._ground = ground
        self._token = token
        self._hook = hook or (lambda _moment, _world: None)
        self._pace_s = pace_s

    @contextmanager
    def _look(self, call: str) -> Iterator[World]:
        """Run a call that changes nothing; yields the world as this host sees it."""
        with self._ground.here() as world:
            world.calls += 1
            world.tick()
            self._hook(Moment(world.calls, call, "before"), world)
            yield world.at(self.name)
            self._hook(Moment(world.calls, call, "after"), world)
            world.tick()

    def _act(self, call: str) -> AbstractContextManager[tuple[World, Callable[[], None]]]:
        """Run a call that changes something; yields the world as this host sees it, and what to call half way."""
        return self._acting(call)

    @contextmanager
    def _acting(self, call: str) -> Iterator[tuple[World, Callable[[], None]]]:
        if self._pace_s:
            time.sleep(self._pace_s)
        with self._ground.here() as world:
            self._admit(world.at(self.name), call)
            world.calls += 1
            number = world.calls
            world.tick()
            self._hook(Moment(number, call, "before"), world)
            yield world.at(self.name), lambda: self._hook(Moment(number, call, "middle"), world)
            world.check()
            self._hook(Moment(number, call, "after"), world)
            world.tick()
            world.check()

    def _admit(self, world: World, call: str) -> None:
        if self._token is None:
            raise AssertionError(f"{call} acts, but the host was opened for looking")
        newest = world.epochs.get(self._token.job, 0)
        if self._token.epoch < newest:
            raise Superseded(job=self._token.job, epoch=self._token.epoch, newest=newest)
        world.epochs[self._token.job] = self._token.epoch

    def _refuse(self, action: str, reason: str) -> HostRefused:
        return HostRefused(host=self.name, action=action, reason=reason)

    def _effect(self, world: World, what: str) -> None:
        """Count an effect of this job that may happen once only."""
        world.effects[f"{self._token.job if self._token else '-'} {what}"] += 1
