"""Storage for tests: NBD servers of several kinds, loop devices. All end with the test, by their own id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1024 * 1024
READY_S = 60.0


def needs(*programs: str) -> None:
    """Skip where a program is missing."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs {program}")


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that is about to be true."""
    end = time.monotonic() + READY_S
    while not true():
        assert time.monotonic() < end, f"waited {READY_S} s in vain for {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(at: Path) -> bool:
    """Bound is not yet listening."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(at)) == 0


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(*words: str | Path, log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs until the block ends."""
    with log.open("wb") as said:
        words = tuple(str(word) for word in words)
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=env)
        try:
            yield process
        finally:
            process.kill()  # unshare and tgtd do not listen to less
            process.wait()


QEMU_NBD = ("qemu-nbd", "-f", "raw", "--persistent", "--shared=8", "--discard=unmap")


@contextmanager
def nbd_on_socket(image: Path, folder: Path, *options: str) -> Iterator[str]:
    """A qemu-nbd for a raw file; gives its URL."""
    needs("qemu-nbd")
    at = folder / f"{image.name}.sock"
    with running(*QEMU_NBD, "-k", str(at), *options, str(image), log=folder / f"{image.name}.log"):
        until(lambda: answers(at), "qemu-nbd's socket")
        url = f"nbd+unix:///?socket={at}"
        # It listens before it has opened the image: only a handshake tells that it has, and holds its locks.
        until(lambda: subprocess.run(["nbdinfo", "--size", url], capture_output=True).returncode == 0, "its image")
        yield url
    at.unlink(missing_ok=True)


@contextmanager
def nbd_on_port(image: Path, folder: Path, *options: str, scheme: str = "nbd", user: str = "") -> Iterator[str]:
    """The same on loopback; the port is tried without TLS, which qemu-nbd takes for a client that went away."""
    needs("qemu-nbd")
    port = free_port()
    with running(*QEMU_NBD, "-b", "127.0.0.1", "-p", str(port), *options, image, log=folder / f"{image.name}.log"):
        until(lambda: listens(port), "qemu-nbd's port")
        yield f"{scheme}://{user}127.0.0.1:{port}/"


@contextmanager
def nbdkit(folder: Path, *words: str) -> Iterator[str]:
    """A server that can be told to misbehave; gives its URL."""
    needs("nbdkit")
    at = folder / "nbdkit.sock"
    with running("nbdkit", "-f", "--exit-with-parent", "-U", str(at), *words, log=folder / "nbdkit.log"):
        until(lambda: answers(at), "nbdkit's socket")
        yield f"nbd+unix:///?socket={at}"
    at.unlink(missing_ok=True)


def certificates(folder: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> Path:
    """A small authority, and keys from it for a server at these addresses and a client, named as QEMU names them."""
    needs("certtool")
    folder.mkdir()
    quiet = {"check": True, "capture_output": True}
    at = "".join(f"ip_address={address}\n" for address in addresses)
    rules = {"ca": "cn=tests\nca\ncert_signing_key\n"}
    for side in ("server", "client"):
        rules[side] = f"cn={side}\ndns_name=localhost\n{at}tls_www_{side}\nsigning_key\nencryption_key\n"
    for name, rule in rules.items():
        (folder / f"{name}.info").write_text(rule)
        key = str(folder / f"{name}-key.pem")
        subprocess.run(["certtool", "--generate-privkey", "--ecc", "--outfile", key], **quiet)  # type: ignore[call-overload]
        made = ["--load-privkey", key, "--template", str(folder / f"{name}.info")]
        if name == "ca":
            made += ["--generate-self-signed", "--outfile", str(folder / "ca-cert.pem")]
        else:
            authority = [
                "--load-ca-certificate",
                str(folder / "ca-cert.pem"),
                "--load-ca-privkey",
                str(folder / "ca-key.pem"),
            ]
            made += ["--generate-certificate", *authority, "--outfile", str(folder / f"{name}-cert.pem")]
        subprocess.run(["certtool", *made], **quiet)  # type: ignore[call-overload]
    return folder


def keys(folder: Path) -> Path:
    """Pre-shared keys for the user qemu."""
    needs("psktool")
    folder.mkdir()
    subprocess.run(["psktool", "-u", "qemu", "-p", str(folder / "keys.psk")], check=True, capture_output=True)
    return folder


@contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """A block device on a file; skips where that is impossible."""
    if os.getuid() != 0:
        pytest.skip("needs root for a loop device")
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("cannot make a loop device here")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@contextmanager
def iscsi_target(image: Path, folder: Path) -> Iterator[str]:
    """A tgtd of its own with one thin LUN; gives its URL."""
    with iscsi_server(image, folder) as (url, _):
        yield url


@contextmanager
def iscsi_server(image: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """The same; gives its process id too."""
    needs("tgtd", "tgtadm")
    port = free_port()
    control = {**os.environ, "TGT_IPC_SOCKET": str(folder / "tgt")}
    name, number = "iqn.2026-01.org.example:disk", str(port % 32768)  # it takes no larger one
    words = ["tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{port}", "-C", number]
    steps = (
        f"--op new --mode target --tid 1 -T {name}",
        f"--op new --mode logicalunit --tid 1 --lun 1 -b {image}",
        "--op update --mode logicalunit --tid 1 --lun 1 --params thin_provisioning=1",
        "--op bind --mode target --tid 1 -I ALL",
    )
    with running(*words, log=folder / "tgtd.log", env=control) as tgtd:
        until(lambda: listens(port), "tgtd's port")
        for step in steps:
            command = ["tgtadm", "-C", number, "--lld", "iscsi", *step.split()]
            subprocess.run(command, check=True, env=control, capture_output=True)
        yield f"iscsi://127.0.0.1:{port}/{name}/1", tgtd.pid


_GANESHA = """
NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = 2049; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;
  Protocols = 3; Transports = TCP; SecType = sys; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""
_NFS = """
ip link set lo up && mount -t tmpfs tmpfs /run && mkdir -p /run/ganesha /run/rpcbind
rpcbind -i
exec ganesha.nfsd -F -f "$1" -L "$2" -p /run/ganesha.pid
"""


@contextmanager
def nfs_server(export: Path, folder: Path) -> Iterator[list[str]]:
    """nfs-ganesha in namespaces of its own, since QEMU's driver knows only the ports of the standard.

    Gives the words before a command that shall see it, at nfs://127.0.0.1 and the path of the export.
    """
    needs("ganesha.nfsd", "rpcbind", "nsenter", "unshare", "ip")
    if os.getuid() != 0:
        pytest.skip("needs root for namespaces")
    log = folder / "ganesha.log"
    (folder / "ganesha.conf").write_text(_GANESHA.format(export=export))
    apart = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = [*apart, "sh", "-c", _NFS, "sh", str(folder / "ganesha.conf"), str(log)]
    with running(*words, log=folder / "namespace.log") as process:
        until(lambda: log.exists() and "NFS SERVER INITIALIZED" in log.read_text(), "nfs-ganesha")
        child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        yield ["nsenter", f"--net=/proc/{child}/ns/net"]


class Link:
    """Two network namespaces and a veth between them; `there` is where servers stand, `here` their clients."""

    address = "10.93.0.1"

    def __init__(self, there: int, here: int) -> None:
        self.there = ["nsenter", f"--net=/proc/{there}/ns/net"]
        self.here = ["nsenter", f"--net=/proc/{here}/ns/net"]
        self._make(there, here)

    def up(self) -> None:
        self._ip(self.there, "link set cable up")

    def down(self) -> None:
        """Pull the plug: nothing comes through any more, and neither side is told."""
        self._ip(self.there, "link set cable down")

    def lower_patience(self, retries: int) -> None:
        """How often the clients' TCP tries again before it gives up; by itself 15 times, a quarter of an hour."""
        subprocess.run([*self.here, "sysctl", "-q", f"net.ipv4.tcp_retries2={retries}"], check=True)

    def _make(self, there: int, here: int) -> None:
        words = f"link add cable type veth peer name cable netns {here}"
        subprocess.run([*self.there, "ip", *words.split()], check=True)
        for side, address in ((self.there, "10.93.0.1/24"), (self.here, "10.93.0.2/24")):
            self._ip(side, f"addr add {address} dev cable")
            self._ip(side, "link set cable up")
            self._ip(side, "link set lo up")

    @staticmethod
    def _ip(side: list[str], words: str) -> None:
        subprocess.run([*side, "ip", *words.split()], check=True)


@contextmanager
def link(folder: Path) -> Iterator[Link]:
    """Gone with the two processes that hold the namespaces."""
    needs("nsenter", "unshare", "ip", "sysctl")
    if os.getuid() != 0:
        pytest.skip("needs root for namespaces")
    holding = ("unshare", "--net", "--kill-child", "tail", "-f", "/dev/null", f"--pid={os.getpid()}")
    ours = Path("/proc/self/ns/net").readlink()

    def apart(pid: int) -> bool:
        return Path(f"/proc/{pid}/ns/net").readlink() != ours

    with (
        running(*holding, log=folder / "there.log") as there,
        running(*holding, log=folder / "here.log") as here,
    ):
        until(lambda: apart(there.pid) and apart(here.pid), "two network namespaces")
        yield Link(there.pid, here.pid)
