"""The published fault matrix: a table in docs, of which each run of a cell writes that cell."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path

NOT_RUN = "not run"
HEAD = """# Faults in relocations, as run

Two hosts of a lab with real libvirtd, QEMU and agents; one guest that stamps its writes and holds a lease. In each
cell a relocation is struck by the fault of its column as soon as its journal shows the step of its row begun; then
what was broken is mended, and done what the job asks for (a libvirtd restarted, or a guest ended that it has lost
track of, see [decision 30](decisions/0030-what-libvirtd-loses-track-of.md)), `vmferry recover` is run, and the guest
is the judge: the VM can run on exactly one host, no second copy ever wrote, every acknowledged write is there, nothing
of the job is left behind; and the host where the VM is not does not know it after its libvirtd has been killed and
started either.

The guest has IDE disks, whose merges, in an undo, QEMU 7.2.22 does not always survive as libvirt makes them ([decision
0027](decisions/0027-ide-disks-stand-for-a-commits-pivot.md)).

`done` and `undone` are how the job ended. `stuck, then done` is a job that asked an operator, told why, and ended so
after what was broken had been mended and it was told to try again. `-` means that there was nothing to strike: no
QEMU of the VM on that host in that step. A cell says when it was run last; **`not run` means just that**: nobody has
seen it, and nothing is claimed of it. Steps are named as in `src/vmferry/migration/strategies.py`.
"""

Case = tuple[str, str, str]
Table = dict[str, dict[str, str]]


def record(page: Path, rows: Mapping[str, Sequence[str]], columns: Sequence[str], cell: tuple[str, str, str]) -> None:
    """Write down how one cell (technology, step, fault), its text last, has ended; several runs may at once."""
    technology, place, text = cell
    step, _, fault = place.partition(" / ")
    with page.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(page)
        known.setdefault(technology, {})[f"{step} / {fault}"] = text
        new = page.with_suffix(".new")
        new.write_text(_written(known, rows, columns))
        new.replace(page)
        page.with_suffix(".lock").unlink()


def not_run(page: Path, cases: Sequence[Case], heading: Mapping[str, str], since: str = "") -> list[Case]:
    """Those of the cases (technology, step, fault) that the page does not tell of, nor of a run on that day or later.

    `since`: YYYY-MM-DD, empty for any day. Where there was nothing to strike, it is looked for again.
    """
    known = _read(page)

    def told(case: Case) -> bool:
        text = known.get(heading[case[0]], {}).get(f"{case[1]} / {case[2]}")
        return text is not None and text.rpartition("(")[2].rstrip(")") >= since

    return [case for case in cases if not told(case)]


def _read(page: Path) -> Table:
    known: Table = {}
    columns: list[str] = []
    technology = ""
    for line in page.read_text().splitlines() if page.exists() else []:
        if line.startswith("## "):
            technology, columns = line.removeprefix("## "), []
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or line.startswith("|---"):
            continue
        if not columns:
            columns = cells[1:]
            continue
        for column, text in zip(columns, cells[1:], strict=True):
            if text != NOT_RUN:
                known.setdefault(technology, {})[f"{cells[0]} / {column}"] = text
    return known


def _written(known: Table, rows: Mapping[str, Sequence[str]], columns: Sequence[str]) -> str:
    lines = [HEAD]
    for technology, steps in rows.items():
        cells = {
            (step, fault): known.get(technology, {}).get(f"{step} / {fault}", NOT_RUN)
            for step in steps
            for fault in columns
        }
        run = sum(text != NOT_RUN for text in cells.values())
        lines += [f"## {technology}", "", f"{run} of {len(cells)} cells have been run.", ""]
        lines += [f"| step | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {step} | {' | '.join(cells[step, fault] for fault in columns)} |" for step in steps]
        lines += [""]
    return "\n".join(lines)
