"""The tools of the bench: vmferry's transfer service, those that a user would take instead, and fio for the limit.

Each is told what to copy and by which way, and gives its seconds and its CPU seconds: user and system time of
all processes that it takes, the server's too where there is one. What the kernel does in threads of its own, such
as writing back the page cache, is in no figure, which flatters the tools that use it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from .table import Sample
from .ways import Open, Way, cpu_of, make_empty

ROOT = Path(__file__).parents[2]
OURS = "vmferry copy"
OURS_COMPARED = "vmferry copy+compare"
FIO = "fio"
FIO_BLOCK = "4M"  # as our requests

Words = Callable[[Path, Way], Sequence[str]]
"""The command that copies a file by a way."""
Prepare = Callable[[Path, Way], None]


@dataclass(frozen=True, slots=True)
class Course:
    """What is copied in one run: each source to its own file, by a way of the same kind."""

    pairs: tuple[tuple[Path, Path], ...]

    def opened(self, open_: Open, stack: ExitStack) -> list[tuple[Path, Way]]:
        return [(source, stack.enter_context(open_(file, source.stat().st_size))) for source, file in self.pairs]


Tool = Callable[[Course], Sample]


def command(words: Words, open_: Open, prepare: Prepare | None = None) -> Tool:
    """A tool that is one command for each file, all of them at once."""

    def run(course: Course) -> Sample:
        with ExitStack() as stack:
            ways = course.opened(open_, stack)
            for source, way in ways:
                if prepare:
                    prepare(source, way)
            began = time.monotonic()
            started = [_started([*way.inside, *words(source, way)]) for source, way in ways]
            cpu_s = sum(_ended(process) for process in started)
            make_durable(*(way.file for _, way in ways))
            seconds = time.monotonic() - began
        return {"seconds": seconds, "cpu_s": cpu_s + sum(way.server_cpu_s for _, way in ways)}

    return run


def ours(open_: Open, *, compared: bool) -> Tool:
    """The service in a process of its own, as in a worker that runs already: without the interpreter's start."""

    def run(course: Course) -> Sample:
        with ExitStack() as stack:
            ways = course.opened(open_, stack)
            asked = Asked(
                pairs=[(str(source), way.at) for source, way in ways],
                bookmarks=str(ways[0][1].file.parent / "bookmarks"),
                tls=str(ways[0][1].tls) if ways[0][1].tls else None,
                compared=compared,
            )
            words = [*ways[0][1].inside, sys.executable, "-m", "tests.bench.child", json.dumps(asdict(asked))]
            told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
            sample = dict(json.loads(told))
        return {**sample, "cpu_s": sample["cpu_s"] + sum(way.server_cpu_s for _, way in ways)}

    return run


@dataclass(frozen=True, slots=True)
class Asked:
    """What the process of our side is told, as JSON; `at` of each pair is a path or a URL."""

    pairs: list[tuple[str, str]]
    bookmarks: str
    tls: str | None
    compared: bool


def device_limit(course: Course) -> Sample:
    """What the storages give when all is read and written at once, past the page cache, and then flushed."""
    words = ["fio", *_FIO_DIRECT, "--fallocate=none", "--end_fsync=1"]
    for number, (source, file) in enumerate(course.pairs):
        size = f"--size={source.stat().st_size}"
        words += [f"--name=read{number}", f"--filename={source}", "--rw=read", size]
        words += [f"--name=write{number}", f"--filename={file}", "--rw=write", size]
    return _fio(words)


def link_limit(open_: Open) -> Tool:
    """What the link gives when it is filled."""

    def run(course: Course) -> Sample:
        with ExitStack() as stack:
            ways = course.opened(open_, stack)
            source, way = ways[0]
            host, port = way.at.split(",")
            send = ["fio", "--output-format=json", "--name=send", "--ioengine=net", f"--hostname={host}"]
            send += [f"--port={port}", "--rw=write", "--bs=1M", f"--size={source.stat().st_size}"]
            return _fio([*way.inside, *send])

    return run


_FIO_DIRECT = ("--output-format=json", "--direct=1", "--ioengine=libaio", "--iodepth=4", f"--bs={FIO_BLOCK}")


def _fio(words: Sequence[str]) -> Sample:
    """The time of its slowest job, without fio's own start."""
    told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    jobs = json.loads(told[told.index("{") :])["jobs"]
    return {"seconds": max(job["job_runtime"] for job in jobs) / 1000}


def cp(source: Path, way: Way) -> Sequence[str]:
    return ("cp", "--sparse=always", "--reflink=never", str(source), way.at)


def cp_reflink(source: Path, way: Way) -> Sequence[str]:
    return ("cp", "--reflink=always", str(source), way.at)


def rsync(source: Path, way: Way) -> Sequence[str]:
    return ("rsync", "--whole-file", "--sparse", str(source), way.at)


def qemu_img(source: Path, way: Way) -> Sequence[str]:
    """Past the page cache; to a server, onto what is there."""
    words = ["qemu-img", "convert", "-T", "none", "-t", "none", "-f", "raw"]
    if way.tls:
        port = way.at.rstrip("/").rpartition(":")[2]
        words += ["--object", f"tls-creds-x509,id=tls0,dir={way.tls},endpoint=client"]
        server = f"driver=nbd,host=127.0.0.1,port={port},tls-creds=tls0"
        return [*words, "-n", "--target-image-opts", str(source), server]
    return [*words, "-O", "raw", *(["-n"] if "://" in way.at else []), str(source), way.at]


def nbdcopy(source: Path, way: Way) -> Sequence[str]:
    at = f"{way.at}?tls-certificates={way.tls}" if way.tls else way.at
    return ("nbdcopy", "--flush", str(source), at)


def empty_file(source: Path, way: Way) -> None:
    """What nbdcopy wants to find."""
    make_empty(way.file, source.stat().st_size)


def make_durable(*paths: Path) -> None:
    """Wait until what was written to these files is on the storage."""
    for path in paths:
        fd = os.open(path, os.O_RDWR)
        os.fdatasync(fd)
        os.close(fd)


def _started(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdin=subprocess.DEVNULL)


def _ended(process: subprocess.Popen[bytes]) -> float:
    cpu_s = cpu_of(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return cpu_s
