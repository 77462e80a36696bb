"""Two hosts' networks on this machine, with a link between them that is as slow as is wanted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vmferry.lab.programs import program, run

NEAR, FAR = "10.99.0.1", "10.99.0.2"


@dataclass(frozen=True, slots=True)
class Link:
    """Where two ends are started, and how the far one is reached from the near one."""

    near: tuple[str, ...]  # words before a command
    far: tuple[str, ...]
    far_address: str


LOOPBACK = Link((), (), "127.0.0.1")


@contextmanager
def shaped(mbit_s: int) -> Iterator[Link]:
    """Two network namespaces, and a pair of virtual Ethernets between them; needs root."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(_namespace()) for _ in range(2))
        run("ip", "link", "add", "near", "netns", str(near), "type", "veth", "peer", "name", "far", "netns", str(far))
        for pid, name, address in ((near, "near", NEAR), (far, "far", FAR)):
            run(*_inside(pid), "ip", "address", "add", f"{address}/24", "dev", name)
            run(*_inside(pid), "ip", "link", "set", name, "up")
            limits = ("rate", f"{mbit_s}mbit", "burst", "64kb", "latency", "50ms")
            run(*_inside(pid), "tc", "qdisc", "add", "dev", name, "root", "tbf", *limits)
        yield Link(_inside(near), _inside(far), FAR)


def _inside(pid: int) -> tuple[str, ...]:
    return (program("nsenter"), f"--net=/proc/{pid}/ns/net")


@contextmanager
def _namespace() -> Iterator[int]:
    """The process that holds it; it ends when its standard input does, so with this process at the latest."""
    words = [program("unshare"), "--net", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        holder.stdout.readline()
        yield holder.pid
        holder.stdin.close()
