"""How much of a host's storages background work may use: what the guests leave. Pure: looks in, a rate out.

After LEDBAT (RFC 6817), with the guests' disk latency in the place of the network's delay: a baseline learned as a
minimum, a target above it, back off in proportion; and, as LEDBAT++ has it, a pause now and then in which the
baseline is seen without us, or it would creep up with what we cause ourselves. Growing is TCP's: fast up to half of
what was too much, then slowly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from vmferry.model.load import DiskWaits, Load

TRICKLE_BYTES_S = 1 << 20
"""Whatever the guests do, so much moves."""
TOLERATED = 2.0
SLACK_S = 0.001
"""A write may take TOLERATED times as long as usual, and this: below a millisecond nobody can tell."""
WINDOW_S = 150.0
"""The usual latency is the least of so long: at least two probes lie in it."""
PROBE_EVERY_S = 60.0
PROBE_LOOKS = 3
"""The first of them still sees what was in flight."""
KNOWN_WRITES = 100
"""So many since QEMU began give a first idea of what is usual."""
FEW_WRITES = 3
"""Fewer say nothing; they are counted with the next look."""
FRUITLESS_LOOKS = 10
"""So often slow while we trickle: then it is not us who make it slow, and this is what is usual now."""
SILENT_LOOKS = 3
"""A disk that wrote and answers no more may be stuck behind us: so long nothing is taken for a good sign."""
QUIET = 0.02
"""Nobody waits for the storages: the latency has another cause, a busy processor, say."""
FULL_LINK = 0.5
"""A link that others use to more than this has no idle half."""
HARDEST, SOFTEST = 0.25, 0.75
"""Of the rate, what is left after one look that found too much."""
START_BYTES_S = 32 << 20
"""Beside guests it begins with so much for a look, so that a small disk is over at once. If they write, a probe
follows, since the mean of their lives need not be what is usual today; then it begins so again, and doubles."""
SWIFT, SLOW, BOLD = 1.5, 0.05, 1.2
"""Growth at each look: SWIFT times up to half of what was too much, by SLOW of it up to that, and then BOLD times."""
UNUSED_LOOKS = 3
"""So often less than half of it is used: then it is no limit any more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is measured at one instant, about once a second."""

    passed_bytes: int
    """All that background work has moved so far."""
    load: Load
    link: float = 0.0
    """0 to 1: how much of a link others use; 0 where there is none."""


@dataclass(slots=True)
class _Disk:
    """What is known of the writes to one disk of a guest."""

    seen: DiskWaits
    lows: deque[tuple[float, float]] = field(default_factory=deque)
    """(when, latency), each lower than those after it: the first is the least of the window."""
    last: deque[float] = field(default_factory=lambda: deque(maxlen=2))
    trickling: deque[float] = field(default_factory=lambda: deque(maxlen=FRUITLESS_LOOKS))
    silent: int = SILENT_LOOKS

    @property
    def usual_s(self) -> float:
        return self.lows[0][1]

    @property
    def now_s(self) -> float:
        """The better of two looks, so that one slow write is not taken for a slow disk."""
        return min(self.last)

    @property
    def excess(self) -> float:
        """Latency as a multiple of what is tolerated: above 1 is too slow. 0 before two looks."""
        return self.now_s / (TOLERATED * self.usual_s + SLACK_S) if len(self.last) == 2 else 0.0

    def note(self, at_s: float, latency_s: float) -> None:
        while self.lows and self.lows[-1][1] >= latency_s:
            self.lows.pop()
        self.lows.append((at_s, latency_s))
        while self.lows[0][0] < at_s - WINDOW_S:
            self.lows.popleft()

    def look(self, at_s: float, waits: DiskWaits, *, trickling: bool) -> bool:
        """Take in a new reading; False when the disk wrote too little since the one before to tell anything."""
        writes = waits.writes - self.seen.writes
        if writes < FEW_WRITES:
            return False
        latency_s = max(0.0, waits.seconds - self.seen.seconds) / writes
        self.seen, self.silent = waits, 0
        self.last.append(latency_s)
        self.note(at_s, latency_s)
        self._learn(at_s, latency_s, trickling=trickling)
        return True

    def _learn(self, at_s: float, latency_s: float, *, trickling: bool) -> None:
        if not trickling or self.excess <= 1:
            self.trickling.clear()
            return
        self.trickling.append(latency_s)
        if len(self.trickling) == FRUITLESS_LOOKS:
            self.lows.clear()
            self.note(at_s, min(self.trickling))
            self.trickling.clear()


@dataclass(frozen=True, slots=True)
class _Sign:
    """The worst finding of one look: `excess` above 1 is too much. `good`: it is known that there is room."""

    excess: float
    says: str = ""
    good: bool = True


class BackgroundRate:
    """Rate of background work on one host; `look` is called about once a second while such work is under way."""

    def __init__(self) -> None:
        self.says = ""
        """Why it holds back; empty while it does not."""
        self._rate: float | None = None
        self._too_much = inf
        """What has been found to be too much; inf while nothing has."""
        self._unused = 0
        self._meeting = False
        self._disks: dict[tuple[str, str], _Disk] = {}
        self._before: Sample | None = None
        self._probe_at = 0.0
        self._probes_left = 0

    def rest(self) -> None:
        """Forget all but the disks' usual latency, since no background work is under way."""
        self._before = None
        self._free()
        for disk in self._disks.values():
            disk.last.clear()
            disk.trickling.clear()

    def look(self, now: Sample) -> int | None:
        """Return the bytes a second that may move until the next look; None: no limit."""
        before, self._before = self._before, now
        sign = self._sign(before, now)
        if before is None:
            self._rate = float(START_BYTES_S) if self._disks else None
            self._meeting = self._rate is not None
        elif now.load.at_s > before.load.at_s:
            moved_s = (now.passed_bytes - before.passed_bytes) / (now.load.at_s - before.load.at_s)
            self._judge(sign, moved_s)
            self._probe(now.load.at_s)
        return self._given()

    def _given(self) -> int | None:
        if self._rate is None:
            return None
        return TRICKLE_BYTES_S if self._probes_left else round(self._rate)

    # -- the rate

    def _judge(self, sign: _Sign, moved_s: float) -> None:
        if self._probes_left:
            self._probes_left -= 1
        elif self._meeting:
            self._meet()
        elif sign.excess > 1:
            self._back_off(sign, moved_s)
        elif self._rate is None or not sign.good:
            return
        elif self._nobody_writes() and sign.excess == 0:
            self._free()
        else:
            self._grow(self._rate, moved_s)

    def _meet(self) -> None:
        """On first hearing of guests: if they write, move little for some looks, to see their latency without us."""
        self._meeting = False
        if self._nobody_writes():
            self._free()
        else:
            self._probes_left = PROBE_LOOKS - 1

    def _nobody_writes(self) -> bool:
        return all(disk.silent >= SILENT_LOOKS for disk in self._disks.values())

    def _back_off(self, sign: _Sign, moved_s: float) -> None:
        if self._rate is None and moved_s <= TRICKLE_BYTES_S:
            return  # so little is not what makes it slow
        used = max(moved_s, float(TRICKLE_BYTES_S))
        used = used if self._rate is None else min(self._rate, used)
        if used > TRICKLE_BYTES_S or self._too_much == inf:
            self._too_much = used
        self._rate = max(float(TRICKLE_BYTES_S), used * min(SOFTEST, max(HARDEST, 1 / sign.excess)))
        self._unused, self.says = 0, sign.says

    def _grow(self, rate: float, moved_s: float) -> None:
        if moved_s < rate / 2:
            self._unused += moved_s > 0
            if self._unused >= UNUSED_LOOKS:
                self._free()
            return
        self._unused = 0
        if self._too_much == inf:
            self._rate = rate * 2
        elif rate < self._too_much / 2:
            self._rate = rate * SWIFT
        elif rate < 2 * self._too_much:
            self._rate = rate + max(float(TRICKLE_BYTES_S), self._too_much * SLOW)
        else:  # what was in the way then is no more
            self._rate = rate * BOLD

    def _free(self) -> None:
        self._rate, self._too_much, self._unused, self._probes_left, self.says = None, inf, 0, 0, ""
        self._meeting = False

    def _probe(self, at_s: float) -> None:
        """Move little for a few looks every PROBE_EVERY_S, so that the usual latency is seen without us."""
        if self._rate is None or self._too_much == inf:
            self._probe_at = at_s + PROBE_EVERY_S
        elif at_s >= self._probe_at and not self._probes_left:
            self._probes_left, self._probe_at = PROBE_LOOKS, at_s + PROBE_EVERY_S

    # -- what is seen

    def _sign(self, before: Sample | None, now: Sample) -> _Sign:
        trickling = self._given() == TRICKLE_BYTES_S
        heard = self._hear(now.load, trickling=trickling)
        quiet = before is not None and _quiet(before.load, now.load)
        judged = [disk for disk in heard if not (quiet and disk.seen.local)]
        stuck = any(0 < disk.silent < SILENT_LOOKS for disk in self._disks.values())
        return max((*_of_disks(judged), _of_link(now.link), _Sign(0.0, good=not stuck)), key=lambda sign: sign.excess)

    def _hear(self, load: Load, *, trickling: bool) -> list[_Disk]:
        """Take in the disks' readings, and return the disks of which something new is known."""
        heard = []
        for key, known in list(self._disks.items()):
            known.silent += 1
            if known.silent > WINDOW_S:
                del self._disks[key]  # its guest is off, or elsewhere
        for waits in load.disks:  # one that is missing may only be busy: libvirt tells nothing while it works on a VM
            key = waits.uuid, waits.target
            disk = self._disks.get(key)
            if disk is None or waits.writes < disk.seen.writes:  # met for the first time, or its QEMU is another one
                self._disks[key] = _met(load.at_s, waits)
            elif disk.look(load.at_s, waits, trickling=trickling):
                heard.append(disk)
        return heard


def _met(at_s: float, waits: DiskWaits) -> _Disk:
    disk = _Disk(waits)
    if waits.writes >= KNOWN_WRITES:
        disk.note(at_s, waits.seconds / waits.writes)
    return disk


def _quiet(before: Load, now: Load) -> bool:
    if before.stalled_s is None or now.stalled_s is None:
        return False
    return now.stalled_s - before.stalled_s < QUIET * (now.at_s - before.at_s)


def _of_disks(disks: Iterable[_Disk]) -> Iterable[_Sign]:
    for disk in disks:
        took, usual = _ms(disk.now_s), _ms(disk.usual_s)
        says = f"giving way to guests: writes of {disk.seen.vm} ({disk.seen.target}) take {took}, usually {usual}"
        yield _Sign(disk.excess, says)


def _of_link(used: float) -> _Sign:
    return _Sign(used / FULL_LINK, f"giving way on the link: others use {used:.0%} of it")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"
