"""Makes docs/with-others.md from what runs of the torture have written: `python -m tests.support.with_others FOLDER`.

A cell says what an act led to when it was done in that phase of a job. A run in which something was broken that must
not be makes no page: it is named, with its seed, and the exit code is 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.support.torture_acts import ACTS

from vmferry.migration.strategies import STRATEGIES
from vmferry.model import Technology
from vmferry.model.names import ID

PAGE = Path("docs/with-others.md")
PHASES: Mapping[str, frozenset[str]] = {
    "before and while it copies": frozenset(
        {"Reserve", "KeepDefined", "Announce", "Freeze", "CopyBase", "CompareBase", "Promote"}
    ),
    "rounds": frozenset({"Rounds"}),
    "cut-over": frozenset(
        {"Mirror", "Pivot"}
        | {"Save", "CopyLast", "FoldLast", "CopyFiles", "Point", "PointOffline", "Restore", "Resume"}
        | {"Relinquish", "StillOff", "Migrate"}
    ),
    "after it": frozenset({"Arrive", "Settle", "SetClock", "Retire", ""}),
}
HEAD = """# Other people and other tools, meanwhile

What others do to a VM while a job moves it, and what that leads to. Made by the torture of `make long`, from {runs}
runs: a random act of virsh's at a random instant of a random job, on real guests that write; after each of them every
acknowledged write was there, nothing was gone that a definition, a snapshot, a saved state or an image names, and the
VM started again.

- `done`: the job went on to its end. `undone`: it put everything back, and the VM is where it was. `refused`: libvirt
  did not take the act (QEMU holds a lock, or it makes no sense of such a VM), and the job went on.
- `asks, then ...`: the job stood and said what was to be done; that was done.
- `stuck`, `waits`: it stands, the VM and all that it wrote are safe, and a sentence says what to do.
- A number is how many runs led to that; an empty cell was not met yet. Steps are those of
  [how it works](how-it-works.md): the rounds come after the base was copied, the cut-over after them.

Best is not to: a job says which VM it holds, and `vmferry job suspend ID` lets it stand while the VM runs on.
"""

Report = Mapping[str, object]


def read(folder: Path) -> list[Report]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def page(reports: Sequence[Report]) -> str:
    """One table for each technology, and the sentences of jobs that did not just go on."""
    lines = [HEAD.format(runs=len(reports))]
    for technology in STRATEGIES:
        mine = [report for report in reports if report["technology"] == technology.value]
        if mine:
            lines += _section(technology, mine)
    return "\n".join(lines)


def _section(technology: Technology, reports: Sequence[Report]) -> list[str]:
    phases = [name for name, steps in PHASES.items() if steps & {*STRATEGIES[technology].names, ""}]
    cells: dict[tuple[str, str], list[str]] = defaultdict(list)
    for report in reports:
        cells[str(report["act"]), phase_of(str(report["step"]))].append(came_to(report))
    acts = [words for words in ACTS if any((words, phase) in cells for phase in phases)]
    lines = [f"## {technology.console_name}", "", f"| act | {' | '.join(phases)} |", "|---" * (len(phases) + 1) + "|"]
    lines += [f"| `{act}` | {' | '.join(_cell(cells[act, phase]) for phase in phases)} |" for act in acts]
    said = sorted({sentence for report in reports for sentence in sentences_of(report)})
    return [*lines, "", *(["What the jobs said:", "", *(f"- {sentence}" for sentence in said), ""] if said else [])]


def phase_of(step: str) -> str:
    return next(name for name, steps in PHASES.items() if step in steps)


def came_to(report: Report) -> str:
    """In a word or two."""
    if report["libvirt"]:
        return "refused" if str(report["outcome"]) == "done" else f"refused, {report['outcome']}"
    return f"{report['outcome']}, {report['changed']}" if report["changed"] else str(report["outcome"])


def _cell(ends: Iterable[str]) -> str:
    counted: dict[str, int] = defaultdict(int)
    for end in ends:
        counted[end] += 1
    return ", ".join(end if count == 1 else f"{end} ({count})" for end, count in sorted(counted.items()))


def sentences_of(report: Report) -> list[str]:
    """What a person was told, without what is another in each run."""
    asked = report["asked"]
    told = [str(report["sentence"]), *(map(str, asked) if isinstance(asked, list) else [])]
    return [f"`{report['act']}`: {_plain(sentence)}" for sentence in told if sentence]


def _plain(sentence: str) -> str:
    """Names of VMs, files, jobs and hosts of a lab say nothing to others."""
    for pattern, word in (
        (r"qemu\+\w+://\S+", "the host"),
        (r"/\S*?(?=tortured)", "/"),
        (r"tortured \d+( foreign)?", "VM"),
        (rf"vmferry-{ID}", "vmferry-ID"),
        (rf"\b{ID}\b(?=`)", "ID"),
        (r"/(tmp|var)/\S+", "FILE"),
    ):
        sentence = re.sub(pattern, word, sentence)
    return " ".join(sentence.split())


def main(words: Sequence[str]) -> int:
    reports = read(Path(words[0]))
    broken = [report for report in reports if report["found"]]
    for report in broken:
        print(f"seed {report['seed']}, {report['technology']}, {report['act']}: {report['found']}", file=sys.stderr)
    if broken or not reports:
        print(f"{len(broken)} of {len(reports)} runs found something that must not be: no page", file=sys.stderr)
        return 1
    PAGE.write_text(page(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
