"""Reads a lab guest's console: acknowledged writes, edges of the host's clock, calls of its guest agent's hook."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Ack:
    """A guest's message: `blocks` blocks of 4 KiB from block `place` of `disk`, stamped `number`, are durable."""

    disk: str
    number: int
    place: int
    mono_us: int
    blocks: int
    took_us: int = 0
    """Microseconds from the begin of the write until it was durable, by the guest's clock; 0 if it does not tell."""


@dataclass(frozen=True)
class Erasure:
    """A guest's message: act `number` zeroes or discards `blocks` blocks of 4 KiB from block `place` of `disk`."""

    disk: str
    number: int
    place: int
    blocks: int
    durable: bool
    """The blocks read as zeros for sure; otherwise they may, from the time of the message on."""


@dataclass(frozen=True)
class Edge:
    """The host's clock reached `rtc_s` seconds at `mono_us` of the guest's clock, or up to `slack_us` before."""

    rtc_s: int
    mono_us: int
    slack_us: int


ACK = re.compile(rb"ack (\S+) (\d+) (\d+) (\d+) (\d+)(?: (\d+))?")
EDGE = re.compile(rb"edge (\d+) (\d+) (\d+)")
ERASED = re.compile(rb"(erasing|zeroed) (\S+) (\d+) (\d+) (\d+)")
NOTE = re.compile(rb"noted (\d+) (\d+)")
WHOLE = re.compile(
    rb"(ack|erasing|zeroed|edge|noted|up|stopped|going|bye|error|freezing|thawed|done|second-writer|walked|touched) "
)
BREAK = re.compile(rb"(up|stopped|going|bye) ")  # a gap between acknowledgements across one of these is no stall


@dataclass
class Console:
    """All messages of one guest, read a little further each time; in a lab of several hosts from one file per host.

    A line that was begun on one host and ended on another is one line.
    """

    file: Path
    others: tuple[Path, ...] = ()
    acks: list[Ack] = field(default_factory=list)
    erasures: list[Erasure] = field(default_factory=list)
    runs: list[list[Edge]] = field(default_factory=lambda: [[]])  # one list of edges for each boot
    second_writers: list[str] = field(default_factory=list)  # what shows that two copies of the guest ran at once
    errors: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    hooks: list[str] = field(default_factory=list)  # what the guest agent's hook was called for: freezing, thawed
    noted: int = 0  # the newest note that is durable on the guest's own file system
    ups: int = 0
    longest_gap_us: int = 0
    _heard: dict[Path, int] = field(default_factory=dict)
    _begun: dict[Path, bytes] = field(default_factory=dict)  # the line that each file ends with, not ended yet
    _newest: Path | None = None  # the file that spoke last
    _seconds: dict[int, Path] = field(default_factory=dict)  # who told of each second of the host's clock
    _last_us: dict[str, int] = field(default_factory=dict)

    def read(self) -> Console:
        """Take in the whole lines that came since the last call. Return this console."""
        spoken = sorted((f for f in (self.file, *self.others) if f.exists()), key=lambda f: f.stat().st_mtime_ns)
        for number, file in enumerate(spoken):
            with file.open("rb") as opened:
                opened.seek(self._heard.get(file, 0))
                news = opened.read()
            if any(before.stat().st_size > self._heard.get(before, 0) for before in spoken[:number]):
                break  # the guest left that one after it was read: its last words come first
            if news:
                self._hear(file, news)
        return self

    def _hear(self, file: Path, news: bytes) -> None:
        self._heard[file] = self._heard.get(file, 0) + len(news)
        begun = self._begun.pop(file, b"")
        if self._newest not in (None, file) and not WHOLE.match(news):
            begun = self._begun.pop(self._newest, b"") or begun
        self._newest = file
        *whole, self._begun[file] = (begun + news).split(b"\n")
        for line in whole:
            self._take(line)

    def _take(self, line: bytes) -> None:
        if self._take_act(line):
            return
        if found := EDGE.fullmatch(line):
            self._take_edge(Edge(*map(int, found.groups())))
        elif BREAK.match(line):
            self._last_us.clear()
            if line.startswith(b"up "):
                self.ups += 1
                self.runs.append([])
        elif line.startswith(b"second-writer "):
            self.second_writers.append(line.decode(errors="replace"))
        elif line.startswith(b"error "):
            self.errors.append(line.decode(errors="replace"))
        elif line.startswith((b"freezing ", b"thawed ")):
            self.hooks.append(line.split()[0].decode())
        elif found := NOTE.fullmatch(line):
            self.noted = int(found[1])
        elif line.startswith(b"done "):
            self.done.add(line[5:].decode())

    def _take_act(self, line: bytes) -> bool:
        """Take in a line about a write or an erasure. Return whether it was one."""
        if found := ACK.fullmatch(line):
            self._take_ack(found)
        elif found := ERASED.fullmatch(line):
            number, place, blocks = map(int, found.groups()[2:])
            self.erasures.append(Erasure(found[2].decode(), number, place, blocks, found[1] == b"zeroed"))
        return found is not None

    def _take_edge(self, edge: Edge) -> None:
        """Take in an edge of the host's clock; the same second on two hosts shows that two copies of the guest run."""
        self.runs[-1].append(edge)
        assert self._newest is not None
        where = self._seconds.setdefault(edge.rtc_s, self._newest)
        if where != self._newest:
            self.second_writers.append(f"both {where} and {self._newest} tell of second {edge.rtc_s}")

    def _take_ack(self, found: re.Match[bytes]) -> None:
        number, place, mono_us, blocks, took_us = map(int, found.groups(default=b"0")[1:])
        ack = Ack(found[1].decode(), number, place, mono_us, blocks, took_us)
        self.acks.append(ack)
        gap_us = mono_us - self._last_us.get(ack.disk, mono_us)
        self.longest_gap_us = max(self.longest_gap_us, gap_us)
        self._last_us[ack.disk] = mono_us

    @property
    def longest_pause_s(self) -> float:
        """The longest time in seconds that the guest was stopped; its own clock stood still, the host's did not."""
        return max(map(longest_jump_s, self.runs))


def longest_jump_s(edges: Iterable[Edge]) -> float:
    """Return the largest jump of the host's clock against the guest's, in seconds, never negative.

    It is exact to a few ms, once 2 edges followed. An edge that falls into a pause is seen only after it, so the
    jump's rest shows at the next edge: neighbours are added up. Two pauses in neighbouring seconds are therefore taken
    for one, never for less.
    """
    jumps = [_jump_us(a, b) for a, b in pairwise(edges)]
    return max((a + b for a, b in pairwise([*jumps, 0.0])), default=0.0) / 1e6


def _jump_us(a: Edge, b: Edge) -> float:
    """Return the middle of the jump that two edges allow, in microseconds: each was seen up to its slack late."""
    jump = (b.rtc_s - a.rtc_s) * 1_000_000 - (b.mono_us - a.mono_us)
    return max(0.0, jump + (b.slack_us - a.slack_us) / 2)
