"""A qemu-storage-daemon in place of a VM's QEMU: its block layer, told what to do over QMP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
from tests.support.nbd_servers import READY_S, needs, running, until

Json = dict[str, Any]


class StorageDaemon:
    """Its monitor; one command after another."""

    def __init__(self, monitor: socket.socket) -> None:
        self._lines = monitor.makefile("rw")
        self._read()  # the greeting
        self.tell("qmp_capabilities")

    def tell(self, command: str, **arguments: object) -> Any:
        """What it returns. Raises AssertionError with what it says against it."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while "return" not in (said := self._read()):
            assert "error" not in said, (command, arguments, said["error"])
        return said["return"]

    def image(self, name: str, path: Path, format_: str, backing: str | None = None) -> None:
        """Open an image for writing, as libvirt does; `backing`: the name of a node, None for none at all."""
        file = {"driver": "file", "filename": str(path), "discard": "unmap", "node-name": f"{name}-file"}
        below = {} if format_ == "raw" else {"backing": backing}
        self.tell("blockdev-add", driver=format_, file=file, discard="unmap", **{"node-name": name}, **below)

    def forget(self, name: str) -> None:
        self.tell("blockdev-del", **{"node-name": name})

    def snapshot(self, active: str, overlay: str) -> None:
        """Who wrote to the active node writes to the overlay from then on."""
        self.tell("blockdev-snapshot", node=active, overlay=overlay)

    def mirror(self, active: str, target: str) -> None:
        """The active node's own layer, and every further write, as a shallow blockCopy of libvirt's asks for it."""
        words = {"device": active, "target": target, "sync": "top", "copy-mode": "background", "job-id": "mirror"}
        self.tell("blockdev-mirror", **words, **{"auto-dismiss": True})

    @property
    def ready(self) -> bool:
        return bool([job for job in self.tell("query-block-jobs") if job["ready"]])

    def end_mirror(self, *, pivot: bool) -> None:
        """Switch to its target, or leave that as far as it has come."""
        if pivot:
            self.tell("block-job-complete", device="mirror")
        else:
            self.tell("block-job-cancel", device="mirror", force=True)
        until(lambda: not self.tell("query-block-jobs"), "the mirror to end")

    def _read(self) -> Json:
        line = self._lines.readline()  # TimeoutError after READY_S
        assert line, "the storage daemon ended the connection"
        said: Json = json.loads(line)
        return said


@contextmanager
def storage_daemon(folder: Path) -> Iterator[StorageDaemon]:
    needs("qemu-storage-daemon")
    at = folder / "qmp.sock"
    words = ("--chardev", f"socket,id=monitor,path={at},server=on,wait=off", "--monitor", "chardev=monitor")
    server = running("qemu-storage-daemon", *words, log=folder / "daemon.log")
    with server, socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(READY_S)
        # It takes one client at a time: one that only knocked, and is being let go, may take the next with it.
        until(lambda: monitor.connect_ex(str(at)) == 0, "the storage daemon's monitor")
        daemon = StorageDaemon(monitor)
        yield daemon
        daemon.tell("quit")
    at.unlink(missing_ok=True)


@contextmanager
def writer(daemon: StorageDaemon, folder: Path, node: str) -> Iterator[nbd.NBD]:
    """A guest's place: what writes to a node, and to each overlay that is put above it."""
    at = folder / "guest.sock"
    daemon.tell("nbd-server-start", addr={"type": "unix", "data": {"path": str(at)}})
    daemon.tell("block-export-add", type="nbd", id="guest", **{"node-name": node}, writable=True, name="disk")
    guest = nbd.NBD()
    guest.set_export_name("disk")
    guest.connect_unix(str(at))
    try:
        yield guest
    finally:
        guest.shutdown()
        daemon.tell("block-export-del", id="guest", mode="hard")
        daemon.tell("nbd-server-stop")
        at.unlink(missing_ok=True)
