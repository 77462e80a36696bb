"""The guest's clock after its memory was loaded: every guest agent that there is, good, bad and missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("libvirt")

import libvirt

from vmferry.errors import HostRefused, HostUnreachable
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.hosts.libvirt.guest_agent import OWN_TIME_S, GuestAgent
from vmferry.hosts.records import GuestClock
from vmferry.migration.steps.clock import clock_note

COMMAND = "`virsh domtime web --sync`"
NEAR_S = 0.2


@dataclass
class Guest:
    """A domain whose agent answers from this clock; as a link of libvirt's has it."""

    behind_s: float
    answers: bool = True
    has_hwclock: bool = True
    reads: float = 1.0
    """Its hwclock reads the RTC in steps of so many seconds."""
    writes_rtc: bool = True
    dies: bool = False
    """libvirtd ends as soon as the clock is to be set."""
    asked_to_set: int = 0

    def call(self, action: str, act: Callable[[Any], Any]) -> Any:
        return act(self)

    def lookupByUUIDString(self, _uuid: str) -> Guest:
        return self

    def agentSetResponseTimeout(self, _seconds: int, _flags: int) -> None:
        pass

    def getTime(self) -> Mapping[str, int]:
        if not self.answers:
            raise refused("QEMU guest agent is not connected")
        now = time.time() - self.behind_s
        return {"seconds": int(now), "nseconds": int(now % 1 * 1e9)}

    def setTime(self, _time: Mapping[str, int], flags: int) -> None:
        self.asked_to_set += 1
        if self.dies:
            raise HostUnreachable(host="qemu:///system", reason="it ended")
        if not self.has_hwclock:
            raise refused("this feature or command is not currently supported")
        if flags & libvirt.VIR_DOMAIN_TIME_SYNC:
            self.behind_s = time.time() % self.reads if self.reads else 0.0
        else:
            self.behind_s = 0.0
            if not self.writes_rtc:
                raise refused("hwclock failed to set hardware clock to system time")

    def set(self, stood_s: float) -> GuestClock | None:
        return GuestAgent(cast(LibvirtConnection, self), "uuid").set_clock(stood_s, 5.0)


def refused(reason: str) -> HostRefused:
    return HostRefused(host="qemu:///system", action="set its clock", reason=reason)


@given(
    stood_s=st.floats(0.0, 600.0),
    own_s=st.floats(-1e9, 1e9),
    reads=st.sampled_from([0.0, 1.0]),
    writes_rtc=st.booleans(),
    has_hwclock=st.booleans(),
)
def test_a_clock_is_never_further_off_than_before_and_a_time_of_its_own_is_left_alone(
    stood_s: float, own_s: float, reads: float, *, writes_rtc: bool, has_hwclock: bool
) -> None:
    guest = Guest(stood_s + own_s, has_hwclock=has_hwclock, reads=reads, writes_rtc=writes_rtc)
    before_s = guest.behind_s

    with pytest.MonkeyPatch.context() as still:  # this machine may be slow, and what it takes is no part of this
        still.setattr(time, "time", lambda: 1_800_000_000.7)
        still.setattr(time, "time_ns", lambda: 1_800_000_000_700_000_000)
        clock = guest.set(stood_s)

    assert clock is not None
    assert abs(clock.now_s - guest.behind_s) < NEAR_S
    assert abs(guest.behind_s) <= abs(before_s) + NEAR_S
    if abs(own_s) > OWN_TIME_S + 1 or before_s < 0:
        assert guest.asked_to_set == 0
    elif before_s > 1.0 and has_hwclock:
        assert abs(guest.behind_s) < NEAR_S


@pytest.mark.parametrize(
    "guest,says",
    [
        (Guest(3.0), "set by the guest agent, it was behind by 3.0 s"),
        (Guest(3.0, reads=1.0), "set by the guest agent"),
        (Guest(3.0, writes_rtc=False, reads=1.0), "set by the guest agent"),
        (Guest(3.0, has_hwclock=False), "behind by 3.0 s, the guest agent could not set it: " + COMMAND),
        (Guest(3.0, answers=False), "behind by 3.0 s, no guest agent answers: " + COMMAND),
        (Guest(0.0), ""),
        (Guest(-5.0), ""),
        (Guest(3600.0 + 3.0), "left as it is, 3603 s behind the host's: the guest keeps a time of its own"),
    ],
)
def test_what_became_of_the_clock_is_said_with_what_sets_it(guest: Guest, says: str) -> None:
    note = clock_note(guest.set(3.0), 3.0, COMMAND)
    assert note.startswith(says)
    assert ("hwclock --hctosys" in note) == ("behind by 3.0 s, " in note)


def test_a_pause_that_nobody_notices_needs_no_note() -> None:
    assert clock_note(None, 0.1, COMMAND) == ""


def test_a_libvirtd_that_ends_meanwhile_is_no_agent_that_does_not_answer() -> None:
    """The job waits for it, and asks again."""
    with pytest.raises(HostUnreachable):
        Guest(3.0, dies=True).set(3.0)
