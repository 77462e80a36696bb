"""All acts on this host: a repeated request finds the running act, and two acts of one job never write at once.

- The same act of a job, asked for again while it runs, is followed, not begun. Its answer, if nobody received it,
  waits for a while, until the job does anything else.
- A newer epoch stops what an older one began, and any act what nobody of the same job follows any more, and begins
  when that has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from vmferry.agent.operation import Operation
from vmferry.errors import AgentUnreachable
from vmferry.hosts.fence import Fence
from vmferry.model import FencingToken
from vmferry.transfer import Watch

KEPT_S = 15 * 60.0
MOST = 256


class Operations:
    """The acts of one agent. Every method may be called from any thread."""

    def __init__(self, host: str, fence: Fence) -> None:
        self._host = host
        self._fence = fence
        self._lock = Lock()
        self._running: set[Operation] = set()
        self._kept: dict[str, tuple[float, Operation]] = {}
        self._leaving = False

    def begin(
        self,
        token: FencingToken,
        key: str,
        call: str,
        act: Callable[[Watch], Any],
        *,
        keep: bool,
        follow: Callable[[Operation], None],
    ) -> Operation:
        """Return the act of that key: the one that runs, or a new one; `follow` is called before it can end.

        `keep`: keep its answer for a while, in case it is lost. Raises Superseded, AgentUnreachable.
        """
        with self._lock:
            if self._leaving or len(self._running) >= MOST:
                reason = "it is leaving" if self._leaving else f"{MOST} calls are running there"
                raise AgentUnreachable(host=self._host, reason=reason)
            self._fence.admit(token)
            found = self._found(token, key)
            if found is not None:
                follow(found)
                return found
            before = self._make_way(token, None)
            operation = Operation(self._host, key, call, token, act)
            follow(operation)
            self._running.add(operation)
            operation.run(before, lambda over: self._over(over, keep=keep))
            return operation

    def find(self, key: str) -> Operation | None:
        """Return the running act of that key; None if it has ended or is stopping, since it then takes no orders."""
        with self._lock:
            return next((o for o in self._running if o.key == key and not o.stopping), None)

    def forget(self, key: str) -> None:
        """Drop the kept answer of an act, since it was received."""
        with self._lock:
            self._kept.pop(key, None)

    @property
    def count(self) -> int:
        return len(self._running)

    def running(self) -> tuple[Operation, ...]:
        """Return the acts that have not ended."""
        with self._lock:
            return tuple(self._running)

    def leave(self, seconds: float) -> None:
        """Accept no more acts, stop all that run, and wait at most so many seconds for them."""
        with self._lock:
            self._leaving = True
            running = list(self._running)
            for operation in running:
                operation.stop(AgentUnreachable(host=self._host, reason="it is leaving"))
        until = time.monotonic() + seconds
        for operation in running:
            operation.wait(max(0.0, until - time.monotonic()))

    # -- under the lock

    def _found(self, token: FencingToken, key: str) -> Operation | None:
        self._forget_old(token.job, key)
        if key in self._kept:
            return self._kept[key][1]
        for operation in self._running:
            if operation.key == key and not operation.stopping:
                operation.take_over(token.epoch)
                self._make_way(token, operation)
                return operation
        return None

    def _make_way(self, token: FencingToken, stays: Operation | None) -> list[Operation]:
        """Stop the acts that must not run beside this one, and return them."""
        mine = [o for o in self._running if o.job == token.job and o is not stays]
        before = [o for o in mine if o.epoch < token.epoch or not o.followed or o.stopping]
        for operation in before:
            reason = f"another call of job {token.job} took its place"
            operation.stop(AgentUnreachable(host=self._host, reason=reason))
        return before

    def _forget_old(self, job: str, key: str) -> None:
        now = time.monotonic()
        stale = [k for k, (until, o) in self._kept.items() if until < now or (o.job == job and k != key)]
        for kept in stale:
            del self._kept[kept]

    # -- at its end, in its own thread

    def _over(self, operation: Operation, *, keep: bool) -> None:
        with self._lock:
            self._running.discard(operation)
            if keep and operation.succeeded:
                self._kept[operation.key] = (time.monotonic() + KEPT_S, operation)
