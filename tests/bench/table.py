"""What every case of the bench measures, and the one table it ends in."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

Sample = Mapping[str, float]
"""One run of one side: what was measured, to the value."""
Samples = Mapping[str, list[Sample]]
"""By side, one for each run."""
Act = Callable[[], Sample]

WIDTH = 128


@dataclass(frozen=True, slots=True)
class Aim:
    """The most that is wanted of the median, or of its ratio to the other side's."""

    most: float
    of: Literal["ratio", "value"] = "ratio"


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of one case; less is better in all of them."""

    case: str
    measured: str
    ours: tuple[float, ...]
    other: tuple[float, ...] = ()
    against: str = ""
    aim: Aim | None = None

    @property
    def value(self) -> float:
        return median(self.ours)

    @property
    def ratio(self) -> float | None:
        """The median of ours to the other side's; None where there is none, or it is zero."""
        return self.value / median(self.other) if self.other and median(self.other) else None

    @property
    def met(self) -> bool | None:
        """None when nothing is aimed at."""
        if self.aim is None:
            return None
        found = self.value if self.aim.of == "value" else self.ratio
        return found is not None and found <= self.aim.most

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "case": self.case,
            "measured": self.measured,
            "vmferry": self.value,
            "vmferry_runs": list(self.ours),
            "against": self.against,
            "other": median(self.other) if self.other else None,
            "other_runs": list(self.other),
            "ratio": self.ratio,
            "aim": self.aim and {"of": self.aim.of, "most": self.aim.most},
            "met": self.met,
        }


def alternate(case: str, runs: int, sides: Mapping[str, Act]) -> Samples:
    """Run every side once a round, the one that begins changing, so that a slow moment hits them alike."""
    seen: dict[str, list[Sample]] = {side: [] for side in sides}
    for run in range(runs):
        names = list(sides)
        for name in names[run % len(names) :] + names[: run % len(names)]:
            began = time.monotonic()
            seen[name].append(sides[name]())
            print(f"{case}, {run + 1} of {runs}: {name}, {time.monotonic() - began:.1f} s", file=sys.stderr)
    return seen


@dataclass(frozen=True, slots=True)
class Against:
    """Rows of one case that compare our side with another."""

    case: str
    seen: Samples
    side: str
    other: str

    def row(self, measured: str, ours: str, others: str, aim: Aim | None = None) -> Row:
        of_ours, of_others = values(self.seen[self.side], ours), values(self.seen[self.other], others)
        return Row(self.case, measured, of_ours, of_others, self.other, aim)


def alone(case: str, samples: list[Sample], measures: dict[str, str]) -> list[Row]:
    """Rows of one side, by what they are called."""
    return [Row(case, said, values(samples, measure)) for said, measure in measures.items()]


def breakdown(case: str, samples: list[Sample], whole: str, prefix: str) -> list[Row]:
    """Each part that takes a fiftieth of the whole, in the order of the first run."""
    names = [name for name in samples[0] if name.startswith(prefix)]
    rows = [Row(case, name.removeprefix(prefix), values(samples, name)) for name in names]
    least = Row(case, whole, values(samples, whole)).value / 50
    return [row for row in rows if row.value >= least]


def values(samples: Iterable[Sample], measure: str) -> tuple[float, ...]:
    return tuple(sample[measure] for sample in samples if measure in sample)


def table(rows: Iterable[Row]) -> str:
    """The rows under their cases, in Markdown, at most WIDTH columns wide."""
    made = Table(box=box.MARKDOWN, pad_edge=True)
    made.add_column("measured", min_width=32, no_wrap=True)
    for name in ("vmferry", "from-to", "other", "from-to"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("by", overflow="fold")
    for name in ("ratio", "at most", "met"):
        made.add_column(name, justify="right", no_wrap=True)
    case = ""
    for row in rows:
        if row.case != case:
            case = row.case
            made.add_row(f"**{case}**")
        made.add_row(*_cells(row))
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, markup=False, emoji=False).print(made)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    aim = "" if row.aim is None else f"{'x ' if row.aim.of == 'ratio' else ''}{row.aim.most:.2f}"
    met = {None: "", True: "yes", False: "NO"}[row.met]
    return (row.measured, *_seen(row.ours), *_seen(row.other), row.against, ratio, aim, met)


def _seen(runs: tuple[float, ...]) -> tuple[str, str]:
    """The median, and the least and the most."""
    return (f"{median(runs):.3f}", f"{min(runs):.2f}-{max(runs):.2f}") if runs else ("", "")
