"""Images that other hosts may read: each through a qemu-nbd of its own, read-only, with TLS both ways.

Over a link of 1 Gbit/s or less qemu-nbd listens for a tunnel's end instead, which compresses where that pays (decision
0025): encrypting and compressing in the agent keeps up with that, and costs more than qemu-nbd's TLS.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

from blake3 import blake3

from vmferry.errors import ExportFailed
from vmferry.errors.system import said
from vmferry.hosts.libvirt.network_cards import is_slow
from vmferry.model.fleet import host_port
from vmferry.qemu import nbd
from vmferry.qemu.img import image_name
from vmferry.qemu.places import Scheme
from vmferry.transfer import Place
from vmferry.tunnel.wire import unpaced

T = TypeVar("T")
Lead = Callable[[str, str], tuple[Path, str, str]]
CONNECTIONS = 16
CIPHERS = "NORMAL:%SERVER_PRECEDENCE:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
"""AES-128 first, as TLS 1.3 demands it of all; GnuTLS by itself would begin with AES-256, a tenth slower for both."""


@dataclass(frozen=True, slots=True)
class ExportAddress:
    """Where other hosts reach this one, and by which certificates they know each other."""

    address: str
    """An IP address or a name that stands in the certificate."""
    certificates: Path
    """A folder as QEMU's tls-creds-x509 take it."""
    link_bytes_s: int | None = None
    """Bytes per second that the link carries in each direction; None to ask the network cards."""


@dataclass(slots=True)
class _ExportServer:
    job: str
    place: Place
    process: subprocess.Popen[bytes]


class Exports:
    """All images that one process serves; serving ends with the process."""

    def __init__(self, front: ExportAddress, lead: Lead | None = None) -> None:
        """`lead` makes a tunnel's end: see hosts.libvirt.migration.MigrationTransport."""
        self.front = front
        self._lead = lead
        self._servers: dict[tuple[str, str, str], _ExportServer] = {}
        self._lock = Lock()
        # The kernel ends qemu-nbd with the thread that started it: so one thread starts them all, and stays.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="exports")

    def serve(self, job: str, image: Path | Place, host: str) -> Place:
        """Serve an image for a job, and return where; one that is served already stays so. Raises ExportFailed."""
        place = image if isinstance(image, Place) else Place(str(image))
        key = (job, place.at, place.format)
        with self._lock:
            known = self._servers.get(key)
            if known is not None and known.process.poll() is None:
                return known.place
            self._servers[key] = self._in_starter(lambda: self._started(job, place, host))
            return self._servers[key].place

    def serve_beginning(self, job: str, file: Path, size: int, host: str) -> Place:
        """Serve the first bytes of a growing file, in place of what was served of it before. Raises ExportFailed."""
        key = (job, str(file), "beginning")
        with self._lock:
            before = self._servers.pop(key, None)
            if before is not None:
                nbd.end(before.process)
            self._servers[key] = self._in_starter(lambda: self._started(job, Place(str(file)), host, size))
            return self._servers[key].place

    def end(self, job: str) -> None:
        """End all exports of a job."""
        with self._lock:
            for key in [key for key in self._servers if key[0] == job]:
                nbd.end(self._servers.pop(key).process)

    def close(self) -> None:
        with self._lock:
            for server in self._servers.values():
                nbd.end(server.process)
            self._servers.clear()
        self._starter.shutdown()

    def _in_starter(self, act: Callable[[], T]) -> T:
        return self._starter.submit(act).result()

    def _started(self, job: str, place: Place, host: str, size: int | None = None) -> _ExportServer:
        known_as = f"{host}:{place.shown} ({place.format})"
        options = ["--", image_options(place, size)]
        slow = is_slow(self.front.address, self.front.link_bytes_s)
        if self._lead is not None and slow:
            part = "" if size is None else "beginning"
            name = blake3(f"{place.at} {place.format} {part}".encode()).hexdigest(8)
            socket_at, address, ticket = self._lead(job, name)
            with _listening(socket.AF_UNIX, str(socket_at)) as listening:
                process = nbd.start([*SERVER, *options], listening)
            return _ExportServer(job, Place(f"nbds://{address}/{EXPORT}", known_as=known_as, through=ticket), process)
        at = self.front.address
        with _listening(socket.AF_INET6 if ":" in at else socket.AF_INET, (at, 0)) as listening:
            # What is set here holds for the connections too. qemu-nbd leaves Nagle's algorithm on, which costs a
            # delayed acknowledgement, 40 ms, now and then while a connection begins.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if slow is False:
                unpaced(listening)
            address = host_port(at, listening.getsockname()[1])
            process = nbd.start([*SERVER, *self._encrypted(), *options], listening)
        return _ExportServer(job, Place(f"nbds://{address}/{EXPORT}", known_as=known_as), process)

    def _encrypted(self) -> list[str]:
        creds = f"tls-creds-x509,id=tls,endpoint=server,dir={self.front.certificates},verify-peer=on,priority={CIPHERS}"
        return ["--object", creds, "--tls-creds=tls"]


def _listening(family: socket.AddressFamily, at: str | tuple[str, int]) -> socket.socket:
    """Return a socket that listens at this address. Raises ExportFailed."""
    listening = socket.socket(family)
    try:
        listening.bind(at)
        listening.listen(CONNECTIONS)
    except OSError as error:
        listening.close()
        raise ExportFailed(path=str(at), reason=said(error)) from error
    return listening


EXPORT = "image"
SERVER = (
    "qemu-nbd",
    "--persistent",
    f"--shared={CONNECTIONS}",
    "--read-only",
    f"--export-name={EXPORT}",
    "--aio=threads",  # "native" takes an eleventh less CPU, and 50 ms to end: too long where memory grows
)


def image_options(place: Place, size: int | None = None) -> str:
    """Return qemu-nbd's options for an image, or for the first `size` bytes of a raw one.

    It is shared with the QEMU that has it open; its format is never probed.
    """
    options: dict[str, object] = {"driver": place.format, "read-only": True, "force-share": True}
    if size is not None:
        options["size"] = size
    options["file"] = {"filename": image_name(place)}
    if place.scheme is Scheme.PATH:
        driver = "host_device" if place.path.is_block_device() else "file"
        options["file"] = {"driver": driver, "filename": image_name(place), "cache": {"direct": _direct(place.path)}}
    return f"json:{json.dumps(options)}"


def _direct(path: Path) -> bool:
    """Can the file be read past the page cache? That of a tmpfs cannot."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True
