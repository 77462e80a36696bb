"""Every kind of storage that a copy can come from or go to, made new for a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.nbd_servers import certificates, keys, loop_device, nbd_on_port, nbd_on_socket

from vmferry.transfer import Place


@dataclass(frozen=True)
class Made:
    """A storage, and the file that holds what is written there."""

    place: Place
    behind: Path


Maker = Callable[[Path, bytes], AbstractContextManager[Made]]


def image(folder: Path, content: bytes) -> Path:
    """A file of this content, thin where it is zero."""
    path = folder / "behind.img"
    path.touch()
    with path.open("r+b") as file:
        for start in range(0, len(content), 4096):
            page = content[start : start + 4096]
            if page.strip(b"\0"):
                file.seek(start)
                file.write(page)
        file.truncate(len(content))
        os.fsync(file.fileno())
    return path


@contextmanager
def plain_file(folder: Path, content: bytes) -> Iterator[Made]:
    path = image(folder, content)
    yield Made(Place(str(path)), path)


@contextmanager
def device(folder: Path, content: bytes) -> Iterator[Made]:
    path = image(folder, content)
    with loop_device(path) as made:
        yield Made(Place(str(made)), path)


@contextmanager
def nbd_unix(folder: Path, content: bytes) -> Iterator[Made]:
    path = image(folder, content)
    with nbd_on_socket(path, folder) as url:
        yield Made(Place(url), path)


@contextmanager
def nbd_tcp(folder: Path, content: bytes) -> Iterator[Made]:
    path = image(folder, content)
    with nbd_on_port(path, folder) as url:
        yield Made(Place(url), path)


@contextmanager
def nbd_certificates(folder: Path, content: bytes) -> Iterator[Made]:
    path, made = image(folder, content), certificates(folder / "certificates")
    tls = f"--object=tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={made}"
    with nbd_on_port(path, folder, tls, "--tls-creds=tls", scheme="nbds") as url:
        yield Made(Place(url, tls=made), path)


@contextmanager
def nbd_shared_key(folder: Path, content: bytes) -> Iterator[Made]:
    path, made = image(folder, content), keys(folder / "keys")
    tls = f"--object=tls-creds-psk,id=tls,endpoint=server,dir={made}"
    with nbd_on_port(path, folder, tls, "--tls-creds=tls", scheme="nbds", user="qemu@") as url:
        yield Made(Place(url, tls=made), path)


@contextmanager
def qcow2(folder: Path, content: bytes) -> Iterator[Made]:
    path, made = image(folder, content), folder / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, made], check=True)
    yield Made(Place(str(made), "qcow2"), made)


MAKERS: dict[str, Maker] = {
    "file": plain_file,
    "device": device,
    "nbd-unix": nbd_unix,
    "nbd-tcp": nbd_tcp,
    "nbd-certificates": nbd_certificates,
    "nbd-shared-key": nbd_shared_key,
    "qcow2": qcow2,
}
