"""`make bench`: both sides in one run, on this machine. `python -m tests.bench --only quick --runs 1 --quick`"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from vmferry.errors import VmferryError

from . import migrations, transfer, tunnel
from .machine import headline, machine
from .migrations import Bench
from .ours import NotMoved
from .table import Row, table

Case = Callable[[Bench], Iterable[Row]]
FULL: Mapping[str, Case] = {
    "live": lambda at: migrations.live(at, data_mib=512),
    "live-1g": lambda at: migrations.live(at, data_mib=1024),
    "quick": lambda at: migrations.quick(at, data_mib=512, touched_mib=600),
    "quick-kvm": lambda at: migrations.quick_kvm(at, data_mib=512, touched_mib=600),
    "latency": lambda at: migrations.latency(at, data_mib=3072),
    "reflink": lambda at: migrations.reflink(at, virtual_gib=100, data_mib=1024),
    "transfer": lambda at: transfer.between_storages(at.lab.storage("san1"), at.lab.storage("san2"), 1024, at.runs),
    "transfer-reflink": lambda at: transfer.reflinking(at.lab.storage("reflink"), 100, 1024, at.runs),
    "tunnel": lambda at: tunnel.streams(512, 48, at.runs),
}
SMALL: Mapping[str, Case] = {
    "live": lambda at: migrations.live(at, data_mib=64),
    "live-1g": lambda at: migrations.live(at, data_mib=128),
    "quick": lambda at: migrations.quick(at, data_mib=64, touched_mib=64),
    "quick-kvm": lambda at: migrations.quick_kvm(at, data_mib=64, touched_mib=64),
    "latency": lambda at: migrations.latency(at, data_mib=512),
    "reflink": lambda at: migrations.reflink(at, virtual_gib=10, data_mib=64),
    "transfer": lambda at: transfer.between_storages(at.lab.storage("san1"), at.lab.storage("san2"), 128, at.runs),
    "transfer-reflink": lambda at: transfer.reflinking(at.lab.storage("reflink"), 10, 128, at.runs),
    "tunnel": lambda at: tunnel.streams(64, 8, at.runs),
}


def main() -> int:
    """Run the cases and print the table. Returns 0 also when an aim was missed: a bench tells, tests judge."""
    asked = _asked()
    facts = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it, too, leaves nothing behind
    try:
        with migrations.own_folder() as folder, migrations.bench(folder, asked.runs) as at:
            rows = [row for name in asked.only for row in (SMALL if asked.quick else FULL)[name](at)]
    except VmferryError as error:
        print(f"the bench cannot run here: {error}", file=sys.stderr)
        return 1
    except NotMoved as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join([*headline(facts, asked.runs), "", table(rows)]))
    if asked.json:
        record = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": facts, "runs": asked.runs}
        asked.json.write_text(json.dumps({**record, "rows": [row.record() for row in rows]}, indent=2) + "\n")
    return 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each side; medians are taken")
    parser.add_argument(
        "--only", nargs="+", choices=list(FULL), default=list(FULL), metavar="NAME", help=", ".join(FULL)
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to try the bench itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, for programs")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
