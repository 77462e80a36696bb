"""What a seed of the torture stands for, and what a run of it came to."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.support.torture_acts import ACTS, Act

from vmferry.lab import DiskSpec, GuestSpec
from vmferry.lab.guests.bare import BARE_GUEST
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import OTHER_HOST, Technology

HERE = (Technology.LIVE, Technology.QUICK, Technology.OFFLINE)
APART = (Technology.LIVE_RELOCATION, Technology.QUICK_RELOCATION, Technology.LAN)
OFF = (Technology.OFFLINE, Technology.LAN)
OFTEN = frozenset({"CopyBase", "Rounds", "Mirror", "Save"})
"""Steps that are struck twice as often as others: most of a job's time passes in them."""


@dataclass(frozen=True)
class Draw:
    """What a seed stands for."""

    seed: int
    technology: Technology
    act: Act
    step: str
    """The job's step that the act waits for."""
    delay_s: float
    raw: bool
    """Whether the second disk is raw; then libvirt makes no internal snapshots."""
    keep_source: bool

    @property
    def via(self) -> str:
        return self.technology.value.split()[0]


@dataclass
class Report:
    """What one run came to; a line of JSON."""

    seed: int
    technology: str
    act: str
    step: str = ""
    """The job's step when the act began; empty when the job had ended."""
    until: str = ""
    """Its step when the act had ended."""
    libvirt: str = ""
    """What libvirt refused it for; empty when it did it."""
    outcome: str = ""
    sentence: str = ""
    asked: list[str] = field(default_factory=list)
    """What the job asked an operator for on its way."""
    found: list[str] = field(default_factory=list)
    """What is broken, and must not be."""
    changed: str = ""
    """What of the act does not hold any more."""
    acknowledged: int = 0

    def line(self) -> str:
        """For people."""
        place = self.step or "after the end"
        refused = f" (refused: {self.libvirt})" if self.libvirt else ""
        said = f": {self.sentence}" if self.sentence else ""
        judged = "; ".join(self.found) or "clean"
        changed = f"; {self.changed}" if self.changed else ""
        return (
            f"torture seed={self.seed} {self.technology} `{self.act}` in {place}{refused} -> "
            f"{self.outcome}{said} | {judged}{changed}"
        )

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.seed} {self.technology}.jsonl").open("w") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def draw(seed: int, technologies: Sequence[Technology] = HERE) -> Draw:
    """All that is random of a run, but how it turns out."""
    luck = random.Random(seed)
    technology = luck.choice(technologies)
    off = technology in OFF
    acts = [act for act in ACTS.values() if (act.off if off else act.on)]
    act = acts[seed % len(acts)]  # each in its turn: none is left to luck
    if technology in OTHER_HOST and act.words == "change-media":
        act = ACTS["setmem"]  # a disc is one more file to be declared there: not what is tried here
    steps = [name for name in STRATEGIES[technology].names for _ in range(1 + (name in OFTEN))]
    return Draw(
        seed,
        technology,
        act,
        luck.choice(steps),
        luck.choice((0.0, luck.uniform(0, 0.1), luck.uniform(0, 1.0))),
        raw=luck.random() < 0.5,
        keep_source=luck.random() < 0.2,
    )


def spec_of(drawn: Draw, disc: Path | None) -> GuestSpec:
    """The guest; a live relocation takes one that KVM can run, on hosts where it runs no stock kernel too."""
    name = f"tortured {drawn.seed}"
    if drawn.technology is Technology.LIVE_RELOCATION:
        disks = tuple(replace(disk, size_mib=64, data_mib=8, region_mib=8) for disk in BARE_GUEST.disks)
        return replace(BARE_GUEST, name=name, disks=disks, memory_mib=64, touch_mib=16, dirty_mib_s=4)
    second = DiskSpec("vdb", format="raw" if drawn.raw else "qcow2", size_mib=128, data_mib=16)
    disks = (DiskSpec("vda", size_mib=128, data_mib=24), second)
    return GuestSpec(name, disks=disks, rate=30, cdrom=disc)
