"""The transfer service alone, against the tools that a user would take instead and against the limit.

All begin with cold caches and end when the data is durable: the other tools are followed by an fdatasync of
their destination.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.support.nbd_servers import certificates

from vmferry.lab.programs import program

from .table import Aim, Row, Samples, alternate, values
from .tools import (
    OURS,
    OURS_COMPARED,
    Course,
    Tool,
    command,
    cp,
    cp_reflink,
    device_limit,
    empty_file,
    link_limit,
    nbdcopy,
    ours,
    qemu_img,
    rsync,
)
from .ways import LINK_MBIT, Open, link, to_file, to_tcp, to_unix

MIB = 1024 * 1024
DEVICE = "device, by fio"
LINK = "link, by fio"
LIMITS = (DEVICE, LINK)
SLOWEST = 1 / 0.95
"""Of the fastest tool's time, for 0.95 of its rate."""
SLOWEST_OF_LIMIT = 1 / 0.9
AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Between:
    """The storages of a case, how much lies on the first, and how often it is copied to the second by each tool."""

    source: Path
    destination: Path
    data_mib: int
    runs: int
    holes: bool = False
    """As much again, in holes."""

    @property
    def gib(self) -> float:
        return self.data_mib / 1024


def local(at: Between) -> list[Row]:
    """From file to file."""
    what = "half holes" if at.holes else "full"
    case = f"file to file, {at.gib:g} GiB, {what}"
    sides = _local_tools() if at.holes else {**_local_tools(), DEVICE: device_limit}
    return _rows(case, _measured(case, sides, at), at.gib)


def at_once(at: Between) -> list[Row]:
    """So many files at once: ours in one process, as the worker does it; of the others a process for each."""
    case = f"{AT_ONCE} files at once, {at.gib:g} GiB in all"
    return _rows(case, _measured(case, {**_local_tools(), DEVICE: device_limit}, at, AT_ONCE), at.gib)


def nbd_unix(at: Between) -> list[Row]:
    return _nbd(f"file to NBD, unix, {at.gib:g} GiB", to_unix, at)


def nbd_tcp(at: Between) -> list[Row]:
    return _nbd(f"file to NBD, TCP, {at.gib:g} GiB", to_tcp, at)


def nbd_tls(at: Between) -> list[Row]:
    """Both sides prove who they are."""
    program("certtool")
    keys = at.source / "bench-keys"
    certificates(keys)
    return _nbd(f"file to NBD, TLS, {at.gib:g} GiB", partial(to_tcp, tls=keys), at)


def slow_link(at: Between) -> list[Row]:
    """To the other end of a link that is slower than any storage."""
    case = f"file to NBD, {LINK_MBIT} Mbit/s, {at.data_mib} MiB"
    with link() as cable:
        to_nbd = cable.to_nbd
        sides = {
            **_nbd_tools(to_nbd),
            "rsync, its daemon": command(rsync, cable.to_rsync),
            LINK: link_limit(cable.to_fio),
        }
        return _rows(case, _measured(case, sides, at), at.gib)


def reflinking(folder: Path, virtual_gib: int, data_mib: int, runs: int) -> list[Row]:
    """A large disk with little data, within one file system that has reflinks."""
    case = f"file to file, reflink, {virtual_gib} GiB"
    clone = "cp --reflink"
    sides = {**_ours(to_file), clone: command(cp_reflink, to_file)}
    at = Between(folder, folder, data_mib, runs)
    seen = _measured(case, sides, at, virtual_mib=virtual_gib * 1024)
    value = Aim(3.0, "value")
    return [_row(case, name.removeprefix("vmferry "), seen, name, clone, value) for name in (OURS, OURS_COMPARED)]


def make_disk(path: Path, data_bytes: int, virtual_bytes: int) -> None:
    """A disk with data in runs of 64 MiB, spread evenly; of noise, which nothing compresses or skips."""
    runs = max(1, data_bytes // (64 * MIB))
    noise = os.urandom(8 * MIB)
    with path.open("wb") as file:
        for n in range(runs):
            file.seek(n * (virtual_bytes // runs) // MIB * MIB)
            left = data_bytes // runs
            while left:
                left -= file.write(noise[:left])
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


def _ours(open_: Open) -> dict[str, Tool]:
    return {OURS: ours(open_, compared=False), OURS_COMPARED: ours(open_, compared=True)}


def _local_tools() -> dict[str, Tool]:
    return {
        **_ours(to_file),
        "cp --sparse=always": command(cp, to_file),
        "rsync --sparse": command(rsync, to_file),
        "qemu-img convert": command(qemu_img, to_file),
        "nbdcopy": command(nbdcopy, to_file, empty_file),
    }


def _nbd_tools(open_: Open) -> dict[str, Tool]:
    return {
        **_ours(open_),
        "qemu-img convert": command(qemu_img, open_),
        "nbdcopy": command(nbdcopy, open_),
    }


def _nbd(case: str, open_: Open, at: Between) -> list[Row]:
    """To a qemu-nbd on a new file of the other storage: cp and rsync cannot."""
    return _rows(case, _measured(case, {**_nbd_tools(open_), DEVICE: device_limit}, at), at.gib)


def _rows(case: str, seen: Samples, gib: float) -> list[Row]:
    """Ours against each tool and against the limit; aimed at is the fastest tool, and the one that needs least CPU.

    The compared copy reads twice and hashes twice.
    """
    others = [name for name in seen if name not in (OURS, OURS_COMPARED, *LIMITS)]
    cpu = {name: tuple(s / gib for s in values(samples, "cpu_s")) for name, samples in seen.items()}
    fastest = min(others, key=lambda name: median(values(seen[name], "seconds")))
    cheapest = min(others, key=lambda name: median(cpu[name]))
    return [
        *(_row(case, "copy", seen, OURS, name, Aim(SLOWEST) if name == fastest else None) for name in others),
        *(_row(case, "copy", seen, OURS, name, Aim(SLOWEST_OF_LIMIT)) for name in LIMITS if name in seen),
        _row(case, "copy+compare", seen, OURS_COMPARED, fastest),
        *(
            Row(case, "copy, CPU s/GiB", cpu[OURS], cpu[name], name, Aim(1.0) if name == cheapest else None)
            for name in others
        ),
        Row(case, "copy+compare, CPU s/GiB", cpu[OURS_COMPARED], cpu[cheapest], cheapest),
    ]


def _row(case: str, said: str, seen: Samples, ours_: str, other: str, aim: Aim | None = None) -> Row:
    return Row(case, said, values(seen[ours_], "seconds"), values(seen[other], "seconds"), other, aim)


def _measured(
    case: str, sides: Mapping[str, Tool], at: Between, files: int = 1, virtual_mib: int | None = None
) -> Samples:
    """Each run with a destination of its own, which is gone after it."""
    data_mib = at.data_mib // files
    virtual_mib = virtual_mib or (2 if at.holes else 1) * data_mib
    names = range(files)
    pairs = tuple((at.source / f"bench-source-{n}.img", at.destination / f"bench-copy-{n}.img") for n in names)

    def once(tool: Tool) -> dict[str, float]:
        os.sync()
        make_cold(*(source for source, _ in pairs))
        try:
            return dict(tool(Course(pairs)))
        finally:
            for _, file in pairs:
                file.unlink(missing_ok=True)

    with ExitStack() as stack:
        for source, _ in pairs:
            stack.callback(source.unlink, missing_ok=True)
            make_disk(source, data_mib * MIB, virtual_mib * MIB)
        return alternate(case, at.runs, {name: partial(once, tool) for name, tool in sides.items()})
