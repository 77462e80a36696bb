"""What became of the files at the source, as a job records it while it removes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from vmferry.model.files import Fate, SourceFileFate
from vmferry.model.vms import Where


def dumped(source: SourceFileFate) -> str:
    return json.dumps({"fate": source.fate.value, "why": source.why, "freed_bytes": source.freed_bytes})


def outcomes(planned: Sequence[SourceFileFate], written: Callable[[Where], str | None]) -> tuple[SourceFileFate, ...]:
    """Return the plan's files, each with what the job has recorded of it."""
    return tuple(_outcome(source, written(source.path)) for source in planned)


def _outcome(source: SourceFileFate, fact: str | None) -> SourceFileFate:
    if fact is None:
        return source
    stored = json.loads(fact)
    return replace(source, fate=Fate(stored["fate"]), why=str(stored["why"]), freed_bytes=int(stored["freed_bytes"]))
