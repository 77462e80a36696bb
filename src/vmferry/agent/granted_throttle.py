"""The throttle of a transfer on an agent, whose budget the manager grants."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition

from vmferry.transfer import Throttle

CANCEL_POLL_S = 0.25
"""So often a waiting thread looks whether the call was cancelled; a grant wakes it at once."""


class GrantedThrottle(Throttle):
    """While the manager follows, bytes pass as they are granted; without a follower, at the last limit."""

    def __init__(self, hungry: Callable[[], None]) -> None:
        """Start with nothing granted. `hungry` is called, from any thread, when bytes wait for a grant."""
        super().__init__(None)
        self._hungry = hungry
        self._grants = Condition()
        self._allowance = 0
        self._taken: int | None = None
        self._followed = True

    @property
    def taken(self) -> int | None:
        """Bytes taken so far; None until the first are wanted: before that nothing need be granted."""
        return self._taken

    def grant(self, granted: int, limit_bytes_s: int | None) -> None:
        """Raise the bytes allowed since the start to `granted`, and set the limit; a late grant changes nothing."""
        with self._grants:
            self._allowance = max(self._allowance, granted)
            self._grants.notify_all()
        self.set_limit(limit_bytes_s)

    def follow(self) -> None:
        """Let bytes pass only as they are granted, since a manager follows now; it grants from what has been taken."""
        with self._grants:
            self._followed = True

    def leave_alone(self) -> None:
        """Let bytes pass without grants, at the last limit, since nobody follows any more."""
        with self._grants:
            self._followed = False
            self._grants.notify_all()

    def take(self, wanted: int, check: Callable[[], None]) -> None:
        while not self._passed(wanted):
            check()
        if not self._followed:
            super().take(wanted, check)

    def _passed(self, wanted: int) -> bool:
        with self._grants:
            taken = self._taken or 0
            if not self._followed or self._allowance > taken:
                self._taken = taken + wanted
                return True
            self._taken = taken
            self._hungry()
            self._grants.wait(CANCEL_POLL_S)
            return False
