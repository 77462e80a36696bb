"""The ways that a disk takes in the bench: to a file, to an NBD server, over a slow link. A way is made for each run.

Whoever serves is a process of ours for that one run, and its CPU counts for the tool that used it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.nbd_servers import answers, free_port, listens

from vmferry.errors import LabProgramFailed
from vmferry.lab.programs import program, run, wait_for

LINK_MBIT = 100
NEAR, FAR = "10.77.0.1", "10.77.0.2"
NBD_PORT, RSYNC_PORT = 10809, 8873  # in a network namespace that has nothing else


@dataclass(slots=True)
class Way:
    """Where one run copies to: `at` is a path or a URL, `file` is where the bytes end up."""

    file: Path
    at: str
    tls: Path | None = None
    inside: tuple[str, ...] = ()
    """The words before a command that shall see the destination."""
    server_cpu_s: float = field(default=0.0, init=False)
    """Known when the way is closed."""


Open = Callable[[Path, int], AbstractContextManager[Way]]
"""Opens a way to a file, which is not there yet and gets so many bytes."""


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """User and system seconds of a process that ends, and of those that it has waited for."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def to_file(file: Path, _size: int) -> Iterator[Way]:
    """A file that the tool makes."""
    yield Way(file, str(file))


@contextmanager
def to_unix(file: Path, size: int) -> Iterator[Way]:
    """A qemu-nbd on a unix socket, on a new empty file, past the page cache."""
    at = file.with_suffix(".sock")
    way = Way(file, f"nbd+unix:///?socket={at}")
    make_empty(file, size)
    try:
        with _serving(way, [*_qemu_nbd(), "-k", str(at), str(file)], lambda: answers(at)):
            yield way
    finally:
        at.unlink(missing_ok=True)


@contextmanager
def to_tcp(file: Path, size: int, tls: Path | None = None) -> Iterator[Way]:
    """The same on loopback; with TLS, and clients that have to prove who they are, when given certificates."""
    port = free_port()
    words = [*_qemu_nbd(), "-b", "127.0.0.1", "-p", str(port)]
    if tls:
        words += ["--object", f"tls-creds-x509,id=tls0,dir={tls},endpoint=server,verify-peer=yes"]
        words += ["--tls-creds", "tls0"]
    way = Way(file, f"{'nbds' if tls else 'nbd'}://127.0.0.1:{port}/", tls)
    make_empty(file, size)
    with _serving(way, [*words, str(file)], lambda: listens(port)):
        yield way


@dataclass(frozen=True, slots=True)
class Link:
    """Two network namespaces with a shaped cable between them."""

    near: tuple[str, ...]
    far: tuple[str, ...]

    @contextmanager
    def to_nbd(self, file: Path, size: int) -> Iterator[Way]:
        """A qemu-nbd at the far end."""
        way = Way(file, f"nbd://{FAR}:{NBD_PORT}/", inside=self.near)
        words = [*self.far, *_qemu_nbd(), "-b", FAR, "-p", str(NBD_PORT), str(file)]
        make_empty(file, size)
        with _serving(way, words, lambda: self._heard(NBD_PORT)):
            yield way

    @contextmanager
    def to_rsync(self, file: Path, _size: int) -> Iterator[Way]:
        """An rsync daemon at the far end."""
        conf = file.with_suffix(".rsyncd")
        conf.write_text(f"use chroot = no\nuid = 0\ngid = 0\n[to]\npath = {file.parent}\nread only = no\n")
        way = Way(file, f"rsync://{FAR}:{RSYNC_PORT}/to/{file.name}", inside=self.near)
        words = [*self.far, "rsync", "--daemon", "--no-detach", f"--config={conf}", f"--port={RSYNC_PORT}"]
        try:
            with _serving(way, words, lambda: self._heard(RSYNC_PORT)):
                yield way
        finally:
            conf.unlink()

    @contextmanager
    def to_fio(self, file: Path, _size: int) -> Iterator[Way]:
        """A fio at the far end that takes what comes, for as long as it comes."""
        way = Way(file, f"{FAR},{NBD_PORT}", inside=self.near)
        take = ["fio", "--name=far", "--ioengine=net", f"--port={NBD_PORT}", "--listen", "--rw=read", "--bs=1M"]
        with _serving(way, [*self.far, *take, "--size=1T"], lambda: self._heard(NBD_PORT)):
            yield way

    def _heard(self, port: int) -> bool:
        """Does somebody listen there? Asked without a connection, which a server may take for its only client."""
        return f":{port} " in run(*self.far, "ss", "-ltnH")


@contextmanager
def link(mbit: int = LINK_MBIT) -> Iterator[Link]:
    """A veth pair between two namespaces of our own, shaped in both directions."""
    with _namespace() as near, _namespace() as far:
        run(*_in(near), "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(far))
        for pid, address in ((near, NEAR), (far, FAR)):
            run(*_in(pid), "ip", "address", "add", f"{address}/24", "dev", "cable")
            run(*_in(pid), "ip", "link", "set", "cable", "up")
            shape = ("rate", f"{mbit}mbit", "burst", "64kb", "latency", "50ms")
            run(*_in(pid), "tc", "qdisc", "add", "dev", "cable", "root", "tbf", *shape)
        yield Link(_in(near), _in(far))


@contextmanager
def _namespace() -> Iterator[int]:
    """The id of a process that holds a network namespace."""
    words = [program("unshare"), "--net", program("sleep"), "infinity"]
    holder = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        ours = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != ours, "a network namespace")
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def _in(pid: int) -> tuple[str, ...]:
    return (program("nsenter"), "-t", str(pid), "--net")


def _qemu_nbd() -> list[str]:
    options = ["--persistent", "--shared=16", "--discard=unmap", "--cache=none", "--aio=native"]
    return [program("qemu-nbd"), "-f", "raw", *options]


def make_empty(file: Path, size: int) -> None:
    """A new file that is one hole."""
    with file.open("xb") as made:
        made.truncate(size)


@contextmanager
def _serving(way: Way, words: Sequence[str], ready: Callable[[], bool]) -> Iterator[None]:
    """A server for one run; its CPU is added to the way."""
    log = way.file.with_suffix(".log")
    with log.open("wb") as said:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        wait_for(lambda: ready() or server.poll() is not None, f"{words[0]} to listen", log=log)
        if server.returncode is not None:
            raise LabProgramFailed(program=" ".join(words), reason=log.read_text(errors="replace"))
        yield
    finally:
        if server.returncode is None:
            os.kill(server.pid, signal.SIGTERM)
            way.server_cpu_s = cpu_of(server)
        log.unlink()
