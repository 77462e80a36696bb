"""The guest agent of one running VM, through libvirt, with a limit on each wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import libvirt

from vmferry.errors import HostRefused, HostUnreachable
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.hosts.records import GuestClock

T = TypeVar("T")

LATE_S = 0.25
"""Seconds; a smaller difference is no more than asking for the time takes."""
OWN_TIME_S = 60.0
"""Seconds; a clock off by so much more than it stood is so on purpose, or from before: its time zone, say."""


_FROM_RTC = libvirt.VIR_DOMAIN_TIME_SYNC


class GuestAgent:
    """The guest agent of one VM, by calls that libvirt does not count as custom agent commands, which taint the VM."""

    def __init__(self, link: LibvirtConnection, uuid: str) -> None:
        self._link = link
        self._uuid = uuid

    def answers(self, seconds: float) -> bool:
        """Does the agent carry out a command that changes nothing in time? Not if somebody else froze the guest."""
        return self._asked("ask its guest agent", seconds, lambda domain: domain.getTime())

    def thaw(self, seconds: float) -> bool:
        """Thaw all file systems; return whether the agent says in time that none is frozen now."""
        return self._asked("thaw its file systems", seconds, lambda domain: domain.fsThaw())

    def set_clock(self, stood_s: float, seconds: float) -> GuestClock | None:
        """Set the guest's clock from its RTC, which went on while it stood; where that fails, to the host's time.

        None when the agent does not answer. It may report a failure when it did not fail, and the other way round: with
        no hwclock in the guest it sets nothing, and one that cannot write the RTC has set the time before that. So
        the guest is asked for its time afterwards.
        """
        with suppress(HostRefused), self.waited_for(seconds):
            before_s = self._behind_s()
            if before_s < LATE_S or abs(before_s - stood_s) > OWN_TIME_S:
                return GuestClock(before_s, before_s)
            with suppress(HostRefused):
                self._call("set its clock from its RTC", lambda domain: domain.setTime(_now(), _FROM_RTC))
            if self._behind_s() >= LATE_S:  # or it was set to a whole second, which is all that some hwclock read
                with suppress(HostRefused):
                    self._call("set its clock", lambda domain: domain.setTime(_now(), 0))
            return GuestClock(before_s, self._behind_s())
        return None

    def _behind_s(self) -> float:
        """Return how many seconds the guest's clock is behind the host's."""
        answer = self._call("ask for its time", lambda domain: domain.getTime())
        return time.time() - int(answer["seconds"]) - int(answer["nseconds"]) / 1e9

    @contextmanager
    def waited_for(self, seconds: float) -> Iterator[None]:
        """Within, libvirt waits at most so many seconds for each answer; afterwards as long as it does by default."""
        self._wait(max(1, round(seconds)))
        try:
            yield
        finally:
            with suppress(HostRefused, HostUnreachable):  # never in the place of what went wrong within
                self._wait(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)

    def _wait(self, seconds: int) -> None:
        self._call("bound the wait for its agent", lambda domain: domain.agentSetResponseTimeout(seconds, 0))

    def _asked(self, action: str, seconds: float, act: Callable[[libvirt.virDomain], object]) -> bool:
        try:
            with self.waited_for(seconds):
                self._call(action, act)
        except HostRefused:
            return False
        return True

    def _call(self, action: str, act: Callable[[libvirt.virDomain], T]) -> T:
        return self._link.call(action, lambda conn: act(conn.lookupByUUIDString(self._uuid)))


def _now() -> dict[str, int]:
    """Return the host's time for setTime: the binding wants one also where libvirt takes none."""
    nanoseconds = time.time_ns()
    return {"seconds": nanoseconds // 1_000_000_000, "nseconds": nanoseconds % 1_000_000_000}
