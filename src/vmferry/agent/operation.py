"""One act on this host, in a thread of its own, which outlives the connection that asked for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread
from typing import Any

import structlog

from vmferry.agent.granted_throttle import GrantedThrottle
from vmferry.errors import AgentFailed, AgentUnreachable, Superseded, VmferryError
from vmferry.errors.system import in_words
from vmferry.hosts.wire import Json, dump_error
from vmferry.model import FencingToken
from vmferry.transfer import Watch

log = structlog.get_logger()

ALONE_S = 15 * 60.0
"""What nobody follows any more goes on for so long."""
PATIENCE_S = 30.0
"""An act waits so long for the one whose place it takes."""


class Operation:
    """Runs `act`, once the acts that it replaces have ended. Implements transfer.Watch for it."""

    def __init__(self, host: str, key: str, call: str, token: FencingToken, act: Callable[[Watch], Any]) -> None:
        self.key = key
        self.call = call
        self.job = token.job
        self.epoch = token.epoch
        self._began_with = token.epoch
        self._host = host
        self._act = act
        self._lock = Lock()
        self._followers: dict[int, Callable[[], None]] = {}
        self._alone_since: float | None = None
        self._stop: VmferryError | None = None
        self._moved: tuple[int, int, float] | None = None
        self._ended = Event()
        self._end: Json | None = None
        self.succeeded = False  # told to `done`, before anybody can hear the end
        self._throttle = GrantedThrottle(self._wake)

    # -- who follows it

    def follow(self, follower: int, wake: Callable[[], None]) -> None:
        """Add a follower; `wake` is called, from any thread, when there is news."""
        with self._lock:
            self._followers[follower] = wake
            self._alone_since = None
            self._throttle.follow()

    def leave(self, follower: int) -> None:
        with self._lock:
            self._followers.pop(follower, None)
            if self._followers:
                return
            self._alone_since = time.monotonic()
            self._throttle.leave_alone()

    @property
    def followed(self) -> bool:
        return bool(self._followers)

    def said(self) -> Json:
        """Return the progress as a line of JSON; once the act has ended, its answer or problem."""
        if self._end is not None:
            return self._end
        line: Json = {}
        if self._moved is not None:
            line["moved"] = self._moved
        if self._throttle.taken is not None:
            line["taken"] = self._throttle.taken
        return line

    def grant(self, granted: int, limit_bytes_s: int | None) -> None:
        self._throttle.grant(granted, limit_bytes_s)

    # -- its end

    @property
    def over(self) -> bool:
        return self._end is not None

    @property
    def stopping(self) -> bool:
        return self._stop is not None

    def stop(self, why: VmferryError) -> None:
        """Have the act stop at its next check; an act without checks goes on to its end."""
        with self._lock:
            self._stop = self._stop or why

    def wait(self, seconds: float) -> bool:
        return self._ended.wait(seconds)

    def take_over(self, epoch: int) -> None:
        self.epoch = max(self.epoch, epoch)

    def run(self, before: Sequence[Operation], done: Callable[[Operation], None]) -> None:
        """Start the act; those in `before` were asked to stop. `done` is called at its end, before followers know."""
        Thread(target=self._run, args=(before, done), name=f"{self.call} {self.job}", daemon=True).start()

    def _run(self, before: Sequence[Operation], done: Callable[[Operation], None]) -> None:
        end = {"problem": dump_error(AgentFailed(host=self._host, reason=f"{self.call} was cut off"))}
        try:
            self._wait_for(before)
            end = {"answer": self._act(self)}
        except VmferryError as error:
            end = {"problem": dump_error(self._seen_from_now(error))}
        except Exception as error:  # a thread's own border
            log.exception("a call failed in a way nobody foresaw", call=self.call, job=self.job)
            reason = f"{type(error).__name__}: {in_words(error)}"
            end = {"problem": dump_error(AgentFailed(host=self._host, reason=reason))}
        finally:
            self.succeeded = "answer" in end
            done(self)  # whoever hears the end may say at once that he has: what is kept must be kept by then
            self._end = end
            self._ended.set()
            self._wake()

    def _wait_for(self, before: Sequence[Operation]) -> None:
        until = time.monotonic() + PATIENCE_S
        for operation in before:
            if not operation.wait(max(0.0, until - time.monotonic())):
                reason = f"{operation.call} of job {self.job}, which was asked for before, has not ended"
                raise AgentUnreachable(host=self._host, reason=reason)
            self.check()

    def _seen_from_now(self, error: VmferryError) -> VmferryError:
        """Turn Superseded into AgentUnreachable if a newer epoch took the act over, for which it is not superseded."""
        if isinstance(error, Superseded) and self.epoch > self._began_with:
            return AgentUnreachable(host=self._host, reason="a call of an older epoch ended meanwhile")
        return error

    def _wake(self) -> None:
        for wake in list(self._followers.values()):
            wake()

    # -- transfer.Watch

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self._moved = (done_bytes, total_bytes, rate_bytes_s)

    def check(self) -> None:
        if self._stop is not None:
            raise self._stop
        since = self._alone_since
        if since is not None and time.monotonic() - since > ALONE_S:
            raise AgentUnreachable(host=self._host, reason=f"nobody followed for {ALONE_S / 60:.0f} minutes")

    @property
    def throttle(self) -> GrantedThrottle:
        return self._throttle
