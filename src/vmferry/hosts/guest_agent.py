"""The guest agent of one running VM, through libvirt: asked with patience that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import libvirt

from vmferry.errors import HostRefused, HostUnreachable
from vmferry.hosts.link import Link


class GuestAgent:
    """Only calls that libvirt does not count as a custom agent command, which would taint the VM."""

    def __init__(self, link: Link, uuid: str) -> None:
        self._link = link
        self._uuid = uuid

    def answers(self, seconds: float) -> bool:
        """Whether it carries out a command that changes nothing; not when somebody else has frozen the guest."""
        return self._asked("ask its guest agent", seconds, lambda domain: domain.getTime())

    def thaw(self, seconds: float) -> bool:
        """Whether it says that no file system is frozen now."""
        return self._asked("thaw its file systems", seconds, lambda domain: domain.fsThaw())

    @contextmanager
    def waited_for(self, seconds: float) -> Iterator[None]:
        """Within, libvirt waits at most so long for each answer; afterwards as long as it does by default."""
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

    def _call(self, action: str, act: Callable[[libvirt.virDomain], object]) -> None:
        self._link.call(action, lambda conn: act(conn.lookupByUUIDString(self._uuid)))
