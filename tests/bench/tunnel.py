"""A stream from one host to another: vmferry's tunnel, stunnel, and socat, which neither encrypts nor compresses.

    python -m tests.bench.tunnel --runs 3

The stream goes from a unix socket to a unix socket. CPU is that of the two processes that carry it, not of the
programs at its ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.nbd_servers import certificates, free_port, until
from tests.support.shaped_links import LOOPBACK, Link, shaped
from tests.support.tunnel_ends import tunnel_between

from .table import Aim, Row, Sample, Samples, alternate, table, values

MIB = 1024 * 1024
GIB = 1024 * MIB
OURS, PLAIN, ENCRYPTED = "vmferry tunnel", "socat", "stunnel"
NOISE, PROGRAMS, ZEROS = "noise", "programs", "zeros"
SLOW_MBIT_S = 100
MOST_OVER_PLAIN = 1.02
ARRIVES_IN = {NOISE: MOST_OVER_PLAIN, PROGRAMS: 0.55, ZEROS: 0.1}
"""On the slow link, of the time of the plain stream."""
_SEND = """
import socket, sys, time
end, left, until = socket.socket(socket.AF_UNIX), int(sys.argv[3]), time.monotonic() + 20
while end.connect_ex(sys.argv[1]) and time.monotonic() < until:  # bound is not yet listening
    time.sleep(0.01)
content = memoryview(open(sys.argv[2], "rb").read())
while left:
    count = min(left, len(content))
    end.sendall(content[:count])
    left -= count
end.shutdown(socket.SHUT_WR)
end.recv(1)
"""


@dataclass(frozen=True, slots=True)
class Way:
    """Where a stream goes: from the socket `here` to the socket `there`."""

    folder: Path
    keys: Path
    link: Link

    @property
    def here(self) -> Path:
        return self.folder / "here"

    @property
    def there(self) -> Path:
        return self.folder / "there"


Ends = Callable[[Way, ExitStack], list[int]]
"""Starts what carries the stream, and gives its processes."""


def streams(mib: int, slow_mib: int, runs: int) -> list[Row]:
    """Noise on loopback, for what the tunnel costs; noise, programs and zeros on a slow link, for what it saves."""
    with tempfile.TemporaryDirectory(prefix="vmferry-tunnel-") as folder, shaped(SLOW_MBIT_S) as slow:
        keys = certificates(Path(folder) / "keys")
        loopback = Way(Path(folder), keys, LOOPBACK)
        rows = [row for kind in (NOISE, PROGRAMS) for row in _unshaped(kind, loopback, mib, runs)]
        for kind in (NOISE, PROGRAMS, ZEROS):
            rows += _on_slow_link(kind, Way(Path(folder), keys, slow), slow_mib, runs)
        return rows


def _unshaped(kind: str, way: Way, mib: int, runs: int) -> list[Row]:
    case = f"tunnel, loopback, {kind}"
    seen = _measured(case, kind, way, mib * MIB, runs)
    gib = mib / 1024
    return [
        Row(case, f"{said} a GiB", _per(seen[OURS], what, gib), _per(seen[other], what, gib), other)
        for said, what in (("seconds", "seconds"), ("CPU s", "cpu_s"))
        for other in seen
        if other != OURS
    ]


def _on_slow_link(kind: str, way: Way, mib: int, runs: int) -> list[Row]:
    case = f"tunnel, {SLOW_MBIT_S} Mbit/s, {kind}, {mib} MiB"
    seen = _measured(case, kind, way, mib * MIB, runs)
    seconds = {side: values(samples, "seconds") for side, samples in seen.items()}
    return [
        *(
            Row(
                case, "seconds", seconds[OURS], seconds[other], other, Aim(ARRIVES_IN[kind]) if other == PLAIN else None
            )
            for other in seen
            if other != OURS
        ),
        Row(case, "CPU s a GiB", _per(seen[OURS], "cpu_s", mib / 1024), _per(seen[PLAIN], "cpu_s", mib / 1024), PLAIN),
    ]


def _measured(case: str, kind: str, way: Way, count: int, runs: int) -> Samples:
    sides: dict[str, Ends] = {OURS: _tunnel, PLAIN: _socat}
    if shutil.which("stunnel4"):
        sides[ENCRYPTED] = _stunnel
    content = way.folder / kind
    content.write_bytes(_content(kind))
    return alternate(case, runs, {side: partial(_stream, way, ends, content, count) for side, ends in sides.items()})


def _stream(way: Way, ends: Ends, content: Path, count: int) -> Sample:
    """One stream through ends that run already."""
    with ExitStack() as stack, socket.socket(socket.AF_UNIX) as listener:
        for left in (way.here, way.there):
            left.unlink(missing_ok=True)
        listener.bind(str(way.there))
        listener.listen()
        listener.settimeout(60)
        processes = ends(way, stack)
        before = sum(map(_cpu_s, processes))
        sender = subprocess.Popen([sys.executable, "-c", _SEND, str(way.here), str(content), str(count)])
        stack.callback(sender.wait)
        stack.callback(sender.kill)
        arriving, _ = listener.accept()
        arriving.settimeout(60)
        began, got, into = time.monotonic(), 0, bytearray(MIB)
        with arriving:
            while more := arriving.recv_into(into):
                got += more
            seconds = time.monotonic() - began
            cpu_s = sum(map(_cpu_s, processes)) - before
        assert got == count, f"{count} bytes were sent, {got} arrived"
        return {"seconds": seconds, "cpu_s": cpu_s}


def _content(kind: str) -> bytes:
    """8 MiB at least, to be sent again and again; zstd does not look so far back."""
    if kind == NOISE:
        return os.urandom(8 * MIB)
    if kind == ZEROS:
        return bytes(8 * MIB)
    found, size = [], 0
    for path in sorted(Path("/usr/lib").glob("*-linux-gnu/*.so.*")):
        if path.is_file() and not path.is_symlink() and size < 64 * MIB:
            found.append(path.read_bytes())
            size += len(found[-1])
    return b"".join(found)


def _tunnel(way: Way, stack: ExitStack) -> list[int]:
    return stack.enter_context(tunnel_between(way.link, way.here, way.there, way.keys)).pids


def _socat(way: Way, stack: ExitStack) -> list[int]:
    port, large = free_port(), ("-b", str(MIB))
    address = way.link.far_address
    far = _spawned(
        stack, *way.link.far, "socat", *large, f"TCP-LISTEN:{port},bind={address}", f"UNIX-CONNECT:{way.there}"
    )
    near = _spawned(stack, *way.link.near, "socat", *large, f"UNIX-LISTEN:{way.here}", f"TCP:{address}:{port},nodelay")
    until(way.here.exists, "socat's socket")
    _until_listening(far, port)
    return [near, far]


def _stunnel(way: Way, stack: ExitStack) -> list[int]:
    port, address = free_port(), way.link.far_address
    near = _stunnel_conf(way, "client", f"client = yes\naccept = {way.here}\nconnect = {address}:{port}\n")
    far = _stunnel_conf(way, "server", f"accept = {address}:{port}\nconnect = {way.there}\n")
    far_pid = _spawned(stack, *way.link.far, "stunnel4", str(far))
    near_pid = _spawned(stack, *way.link.near, "stunnel4", str(near))
    until(way.here.exists, "stunnel's socket")
    _until_listening(far_pid, port)
    return [near_pid, far_pid]


def _stunnel_conf(way: Way, side: str, words: str) -> Path:
    keys = "".join(f"{word} = {way.keys}/{file}\n" for word, file in (("CAfile", "ca-cert.pem"), *_own(side)))
    conf = way.folder / f"{side}.conf"
    conf.write_text(
        f"foreground = yes\npid =\ndebug = 3\n[stream]\nsslVersionMin = TLSv1.3\nverifyChain = yes\n{keys}{words}"
    )
    return conf


def _own(side: str) -> tuple[tuple[str, str], ...]:
    return ("cert", f"{side}-cert.pem"), ("key", f"{side}-key.pem")


def _spawned(stack: ExitStack, *words: str) -> int:
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def _until_listening(pid: int, port: int) -> None:
    """Without connecting: socat takes one caller only."""
    wanted = f":{port:04X} 00000000:0000 0A"
    until(lambda: wanted in Path(f"/proc/{pid}/net/tcp").read_text(), f"port {port}")


def _cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _per(samples: list[Sample], measure: str, gib: float) -> tuple[float, ...]:
    return tuple(value / gib for value in values(samples, measure))


def main() -> None:
    """The rows alone, without a lab."""
    parser = argparse.ArgumentParser("python -m tests.bench.tunnel", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512, help="on loopback")
    parser.add_argument("--slow-mib", type=int, default=48, help="on the slow link")
    asked = parser.parse_args()
    print(table(streams(asked.mib, asked.slow_mib, asked.runs)))


if __name__ == "__main__":
    main()
