"""Our side of a run, in a process of its own: `python -m tests.bench.child JSON` copies and prints what it took."""

from __future__ import annotations

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmferry.transfer import AnyPlace, Place, Transfer, Unwatched, compare, copy, forget

from .table import Sample
from .tools import Asked


def child(asked: Asked) -> Sample:
    """All copies at once; the clock runs without the interpreter's start."""
    transfers = [_transfer(asked, number) for number in range(len(asked.pairs))]
    began, before = time.monotonic(), _cpu()
    with ThreadPoolExecutor(len(transfers)) as pool:
        list(pool.map(lambda transfer: _carry(transfer, compared=asked.compared), transfers))
    told = {"seconds": time.monotonic() - began, "cpu_s": _cpu() - before}
    for transfer in transfers:
        forget(transfer)
    return told


def _transfer(asked: Asked, number: int) -> Transfer[AnyPlace, AnyPlace]:
    source, at = asked.pairs[number]
    bookmarks = Path(f"{asked.bookmarks}.{number}")
    if "://" not in at:
        return Transfer[AnyPlace, AnyPlace](Path(source), Path(at), bookmarks)
    return Transfer[AnyPlace, AnyPlace](Place(source), Place(at, tls=Path(asked.tls) if asked.tls else None), bookmarks)


def _carry(transfer: Transfer[AnyPlace, AnyPlace], *, compared: bool) -> None:
    copy(transfer, Unwatched())
    if compared:
        compare(transfer, Unwatched())


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    print(json.dumps(child(Asked(**json.loads(sys.argv[1])))))
