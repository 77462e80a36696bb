"""`make bench`: both sides in one run, on this machine. `python -m tests.bench nbd-unix live --runs 3 --quick`"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vmferry.errors import VmferryError

from . import migrations, relocations, transfer, tunnel
from .machine import headline, machine
from .migrations import Bench
from .ours import NotMoved
from .table import Row, table
from .transfer import Between


@dataclass(frozen=True, slots=True)
class Size:
    """How much is moved."""

    data_mib: int
    touched_mib: int
    link_mib: int
    virtual_gib: int


FULL = Size(data_mib=1024, touched_mib=600, link_mib=64, virtual_gib=100)
SMALL = Size(data_mib=128, touched_mib=64, link_mib=8, virtual_gib=10)

Case = Callable[[Bench, Size], Iterable[Row]]


def _between(at: Bench, data_mib: int, *, holes: bool = False) -> Between:
    return Between(at.lab.storage("san1"), at.lab.storage("san2"), data_mib, at.runs, holes)


CASES: Mapping[str, Case] = {
    "live": lambda at, size: migrations.live(at, size.data_mib // 2),
    "live-1g": lambda at, size: migrations.live(at, size.data_mib),
    "quick": lambda at, size: migrations.quick(at, size.data_mib // 2, size.touched_mib),
    "quick-kvm": lambda at, size: migrations.quick_kvm(at, size.data_mib // 2, size.touched_mib),
    "latency": lambda at, size: migrations.latency(at, size.data_mib * 3),
    "reflink": lambda at, size: migrations.reflink(at, size.virtual_gib, size.data_mib),
    "files": lambda at, size: transfer.local(_between(at, size.data_mib)),
    "files-holes": lambda at, size: transfer.local(_between(at, size.data_mib, holes=True)),
    "files-reflink": lambda at, size: transfer.reflinking(
        at.lab.storage("reflink"), size.virtual_gib, size.data_mib, at.runs
    ),
    "nbd-unix": lambda at, size: transfer.nbd_unix(_between(at, size.data_mib)),
    "nbd-tcp": lambda at, size: transfer.nbd_tcp(_between(at, size.data_mib)),
    "nbd-tls": lambda at, size: transfer.nbd_tls(_between(at, size.data_mib)),
    "link": lambda at, size: transfer.slow_link(_between(at, size.link_mib)),
    "ten": lambda at, size: transfer.at_once(_between(at, size.data_mib)),
    "relocation": lambda at, size: relocations.live(at.runs, size.data_mib // 2),
    "relocation-2g": lambda at, size: relocations.live(at.runs, size.data_mib * 2),
    "relocation-1gbit": lambda at, size: relocations.live_over_a_gbit(at.runs, size.data_mib // 2, noise=False),
    "relocation-1gbit-noise": lambda at, size: relocations.live_over_a_gbit(at.runs, size.data_mib // 2, noise=True),
    "relocation-quick": lambda at, size: relocations.quick(at.runs, size.data_mib // 4),
    "tunnel": lambda at, size: tunnel.streams(size.data_mib // 2, size.link_mib, at.runs),
}


def main() -> int:
    """Run the cases and print the table, also of those that came before one that failed.

    Returns 0 also when an aim was missed: a bench tells, tests judge.
    """
    asked = _asked()
    facts = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it, too, leaves nothing behind
    rows: list[Row] = []
    failures: list[str] = []
    try:
        with migrations.own_folder() as folder, migrations.bench(folder, asked.runs) as at:
            for name in asked.cases:
                failures += _tried(name, at, SMALL if asked.quick else FULL, rows)
    except VmferryError as error:
        failures.append(f"the bench cannot run here: {error}")
    finally:
        print("\n".join([*headline(facts, asked.runs), "", table(rows)]))
    if asked.json:
        record = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts, "runs": asked.runs}
        asked.json.write_text(json.dumps({**record, "rows": [row.record() for row in rows]}, indent=2) + "\n")
    print("".join(f"\n{failure}" for failure in failures), file=sys.stderr, end="")
    return 1 if failures else 0


def _tried(name: str, at: Bench, size: Size, rows: list[Row]) -> list[str]:
    """Add the rows of a case, or say why there are none."""
    try:
        rows += CASES[name](at, size)
    except (VmferryError, NotMoved, subprocess.CalledProcessError) as error:
        return [f"{name}: {error}\n"]
    return []


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="NAME", help=f"all, or of these: {', '.join(CASES)}")
    parser.add_argument("--runs", type=int, default=5, help="of each side; medians are taken")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to try the bench itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, for programs")
    asked = parser.parse_args()
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    asked.cases = asked.cases or list(CASES)
    return asked


if __name__ == "__main__":
    raise SystemExit(main())
