"""The transfer service alone, against the tools that a user would take instead.

All begin with cold caches and end when the data is durable: the other tools are followed by an fdatasync of
their destination. CPU is user and system time of the process that copies; work that the kernel does later, such
as writing back the page cache, is not in it, which flatters the tools that use it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from .table import Aim, Row, Sample, Samples, alternate, values

MIB = 1024 * 1024
GIB = 1024 * MIB
OURS = "vmferry copy"
OURS_COMPARED = "vmferry copy+compare"
ROOT = Path(__file__).parents[2]
SLOWEST = 1 / 0.95
"""Of the fastest tool's time, for 0.95 of its rate."""
CPU_S_PER_GIB = 0.4

Tool = Callable[[Path, Path], Sample]


def make_disk(path: Path, data_bytes: int, virtual_bytes: int) -> None:
    """A disk with data in runs of 64 MiB, spread evenly; of noise, which nothing compresses or skips."""
    runs = max(1, data_bytes // (64 * MIB))
    noise = os.urandom(8 * MIB)
    with path.open("wb") as file:
        for n in range(runs):
            file.seek(n * (virtual_bytes // runs) // MIB * MIB)
            for _ in range(data_bytes // runs // len(noise)):
                file.write(noise)
        file.truncate(virtual_bytes)
        file.flush()
        os.fsync(file.fileno())


def make_cold(*paths: Path) -> None:
    """Forget what the page cache holds of these files."""
    for path in filter(Path.exists, paths):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def make_durable(*paths: Path) -> None:
    """Wait until what was written to these files is on the storage."""
    for path in paths:
        fd = os.open(path, os.O_RDWR)
        os.fdatasync(fd)
        os.close(fd)


def command(*words: str, prepare: Callable[[Path, Path], None] | None = None) -> Tool:
    """A tool that is one command; {source} and {destination} stand in its words."""

    def run(source: Path, destination: Path) -> Sample:
        if prepare:
            prepare(source, destination)
        made = [word.format(source=source, destination=destination) for word in words]
        before, began = _children_cpu(), time.monotonic()
        subprocess.run(made, check=True)
        make_durable(destination)
        return {"seconds": time.monotonic() - began, "cpu_s": _children_cpu() - before}

    return run


def ours(*, compared: bool) -> Tool:
    """The service in a process of its own, as in a worker that runs already: without the interpreter's start."""

    def run(source: Path, destination: Path) -> Sample:
        words = [sys.executable, "-m", "tests.bench.transfer", str(source), str(destination), str(int(compared))]
        told = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        return dict(json.loads(told))

    return run


def child(source: Path, destination: Path, *, compared: bool) -> None:
    """Copy in this process and print what it took: `python -m tests.bench.transfer SOURCE DESTINATION 0|1`."""
    from vmferry.transfer import Transfer, Unwatched, compare, copy, forget

    transfer = Transfer(source, destination, destination.with_suffix(".bookmarks"))
    began = time.monotonic()
    before = _cpu(resource.RUSAGE_SELF)
    copy(transfer, Unwatched())
    if compared:
        compare(transfer, Unwatched())
    told = {"seconds": time.monotonic() - began, "cpu_s": _cpu(resource.RUSAGE_SELF) - before}
    forget(transfer)
    print(json.dumps(told))


def tools() -> dict[str, Tool]:
    """All that this machine has."""
    known = {
        OURS: ours(compared=False),
        OURS_COMPARED: ours(compared=True),
        "cp --sparse=always": command("cp", "--sparse=always", "--reflink=never", "{source}", "{destination}"),
        "qemu-img convert": command(
            "qemu-img", "convert", "-t", "none", "-T", "none", "-f", "raw", "-O", "raw", "{source}", "{destination}"
        ),
        "nbdcopy": command("nbdcopy", "--flush", "{source}", "{destination}", prepare=_make_empty),
    }
    return {name: tool for name, tool in known.items() if name in (OURS, OURS_COMPARED) or _present(name)}


def between_storages(folder: Path, dest_folder: Path, data_mib: int, runs: int) -> list[Row]:
    """A full disk, and one with as many holes as data, by every tool."""
    full = _disk("full disk", folder, dest_folder, data_mib, data_mib, runs)
    return full + _disk("half holes", folder, dest_folder, data_mib, 2 * data_mib, runs)


def reflinking(folder: Path, virtual_gib: int, data_mib: int, runs: int) -> list[Row]:
    """A large disk with little data, within one file system that has reflinks."""
    case = f"transfer, reflink, {virtual_gib} GiB"
    clone = command("cp", "--reflink=always", "{source}", "{destination}")
    sides = {OURS: ours(compared=False), OURS_COMPARED: ours(compared=True), "cp --reflink": clone}
    seen = _measured(case, sides, folder, folder, (data_mib, virtual_gib * 1024), runs)
    return [
        *(
            _row(case, name.removeprefix("vmferry "), seen, name, "cp --reflink", Aim(3.0, "value"))
            for name in (OURS, OURS_COMPARED)
        ),
        *_cpu_rows(case, seen, data_mib),
    ]


def _disk(name: str, folder: Path, dest_folder: Path, data_mib: int, virtual_mib: int, runs: int) -> list[Row]:
    case = f"transfer, {data_mib / 1024:g} GiB, {name}"
    seen = _measured(case, tools(), folder, dest_folder, (data_mib, virtual_mib), runs)
    others = {
        tool: median(values(samples, "seconds")) for tool, samples in seen.items() if tool not in (OURS, OURS_COMPARED)
    }
    fastest = min(others, key=lambda tool: others[tool])
    copies = [_row(case, "copy", seen, OURS, tool, Aim(SLOWEST) if tool == fastest else None) for tool in others]
    return [*copies, _row(case, "copy+compare", seen, OURS_COMPARED, fastest), *_cpu_rows(case, seen, data_mib)]


def _row(case: str, said: str, seen: Samples, ours_: str, other: str, aim: Aim | None = None) -> Row:
    return Row(case, said, values(seen[ours_], "seconds"), values(seen[other], "seconds"), other, aim)


def _cpu_rows(case: str, seen: Samples, data_mib: int) -> list[Row]:
    """The compared copy reads twice and hashes twice."""
    gib = data_mib / 1024
    cpu = {tool: tuple(s / gib for s in values(samples, "cpu_s")) for tool, samples in seen.items()}
    other = "cp --sparse=always" if "cp --sparse=always" in cpu else list(cpu)[-1]
    aim = Aim(CPU_S_PER_GIB, "value")
    return [
        Row(case, "copy, CPU s/GiB", cpu[OURS], cpu[other], other, aim),
        Row(case, "copy+compare, CPU s/GiB", cpu[OURS_COMPARED], cpu[other], other),
    ]


def _measured(
    case: str, sides: dict[str, Tool], folder: Path, dest_folder: Path, data_virtual_mib: tuple[int, int], runs: int
) -> Samples:
    source, destination = folder / "bench-source.img", dest_folder / "bench-destination.img"
    make_disk(source, data_virtual_mib[0] * MIB, data_virtual_mib[1] * MIB)

    def once(tool: Tool) -> Sample:
        os.sync()
        make_cold(source)
        try:
            return tool(source, destination)
        finally:
            destination.unlink(missing_ok=True)

    try:
        return alternate(case, runs, {name: partial(once, tool) for name, tool in sides.items()})
    finally:
        source.unlink()


def _make_empty(source: Path, destination: Path) -> None:
    destination.touch()
    os.truncate(destination, source.stat().st_size)


def _present(name: str) -> bool:
    return shutil.which(name.split()[0]) is not None


def _children_cpu() -> float:
    return _cpu(resource.RUSAGE_CHILDREN)


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    child(Path(sys.argv[1]), Path(sys.argv[2]), compared=sys.argv[3] == "1")
