"""What has become of the files at the source, as a job writes it down while it removes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vmferry.model.files import Fate, SourceFileFate
from vmferry.model.vms import Where


def outcome_name(path: Where) -> str:
    """The name of the job's fact about that file."""
    return f"outcome:{path}"


def dumped(source: SourceFileFate) -> str:
    return json.dumps({"fate": source.fate.value, "why": source.why, "freed_bytes": source.freed_bytes})


def outcomes(planned: Sequence[SourceFileFate], facts: Mapping[str, object]) -> tuple[SourceFileFate, ...]:
    """The files of the plan, with what became of each."""
    return tuple(_outcome(source, facts.get(outcome_name(source.path))) for source in planned)


def _outcome(source: SourceFileFate, fact: object) -> SourceFileFate:
    if not isinstance(fact, str):
        return source
    told = json.loads(fact)
    return replace(source, fate=Fate(told["fate"]), why=str(told["why"]), freed_bytes=int(told["freed_bytes"]))
