"""A lab's volumes: block devices, iSCSI LUNs, NBD exports and NFS files, each a sparse file below the lab's folder.

Target and servers live in the lab's own network and mount namespaces, so they end with the lab. What connects
to a LUN or to NFS has to be inside as well: `inside` are the words that take a command there.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from vmferry.errors import LabProgramFailed
from vmferry.lab.hosts.host import LabHost
from vmferry.lab.programs import program, run, spawn, wait_for

PORT = 3260
TARGET = "iqn.2026-11.invalid.vmferry:lab"
MIB = 1 << 20
GANESHA_CONF = """
NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = 2049; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; }}
EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;
  Protocols = 3; Transports = TCP; SecType = sys; FSAL {{ Name = VFS; }} }}
"""


class LabVolumes:
    """Makes volumes until the with block ends."""

    def __init__(self, host: LabHost) -> None:
        self._at = host.at / "volumes"
        self._at.mkdir(exist_ok=True)
        self.inside = tuple(host.inside())
        self.backing: dict[str, Path] = {}
        """Volume, as a person names it, to the file that holds it."""
        self._luns = count(1)
        self._loops: list[int] = []
        self._servers: list[subprocess.Popen[bytes]] = []
        self._target_runs = False
        self._exports: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for loop in self._loops:
            os.close(loop)  # the last to have it open frees it
        for server in self._servers:
            server.kill()
            server.wait()

    def make(self, kind: str, name: str, size_mib: int) -> str:
        """A volume of a kind: device, iscsi, nbd or nfs."""
        makers = {"device": self.device, "iscsi": self.lun, "nbd": self.export, "nfs": self.nfs}
        return makers[kind](name, size_mib)

    def device(self, name: str, size_mib: int) -> str:
        """A loop device; free again when the block and every QEMU that has it open have ended."""
        file = self._file(name, size_mib)
        device = run("losetup", "--find", "--show", file).strip()
        self._loops.append(os.open(device, os.O_RDONLY | os.O_CLOEXEC))
        run("losetup", "--detach", device)
        return self._known(device, file)

    def lun(self, name: str, size_mib: int) -> str:
        """An iSCSI LUN, by its URL."""
        if not self._target_runs:
            self._start_target()
        number, file = next(self._luns), self._file(name, size_mib)
        unit = ("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(number), "-b", str(file))
        self._tgtadm(*unit)
        return self._known(f"iscsi://127.0.0.1/{TARGET}/{number}", file)

    def export(self, name: str, size_mib: int) -> str:
        """An NBD export on a unix socket, by its URL; its server is nbdkit."""
        file, socket = self._file(name, size_mib), self._at / f"{name}.sock"
        words = (*self.inside, program("nbdkit"), "--foreground", "--unix", str(socket), "file", str(file))
        self._servers.append(spawn(words, self._at / "nbdkit.log"))
        wait_for(socket.exists, f"the NBD server of {name}", log=self._at / "nbdkit.log")
        return self._known(f"nbd+unix:///?socket={socket}", file)

    def nfs(self, name: str, size_mib: int) -> str:
        """A file on an NFS export, by its URL; its server is nfs-ganesha."""
        if self._exports is None:
            self._exports = self._start_nfs()
        file = self._exports / f"{name}.img"
        with file.open("xb") as made:
            made.truncate(size_mib * MIB)
        return self._known(f"nfs://127.0.0.1{file}?uid=0&gid=0", file)

    def _start_nfs(self) -> Path:
        """rpcbind and nfs-ganesha, on the ports of the standard: QEMU's driver knows no others."""
        export, log = self._at / "nfs", self._at / "ganesha.log"
        export.mkdir(exist_ok=True)
        for name in ("rpcbind", "ganesha"):
            (self._at.parent / "run" / name).mkdir(exist_ok=True)
        config = self._at / "ganesha.conf"
        config.write_text(GANESHA_CONF.format(export=export))
        log.unlink(missing_ok=True)
        self._servers.append(spawn((*self.inside, program("rpcbind"), "-f"), self._at / "rpcbind.log"))
        words = (program("ganesha.nfsd"), "-F", "-f", str(config), "-L", str(log), "-p", "/run/ganesha.pid")
        self._servers.append(spawn((*self.inside, *words), self._at / "ganesha.out"))
        wait_for(lambda: log.exists() and "NFS SERVER INITIALIZED" in log.read_text(), "the NFS server", log=log)
        return export

    def _start_target(self) -> None:
        self._servers.append(spawn((*self.inside, program("tgtd"), "--foreground"), self._at / "tgtd.log"))
        self._target_runs = True

        def made() -> bool:
            with suppress(LabProgramFailed):
                self._tgtadm("--op", "new", "--mode", "target", "--tid", "1", "--targetname", TARGET)
                return True
            return False

        wait_for(made, "the iSCSI target", log=self._at / "tgtd.log")
        self._tgtadm("--op", "bind", "--mode", "target", "--tid", "1", "--initiator-address", "ALL")

    def _tgtadm(self, *words: str) -> None:
        run(*self.inside, program("tgtadm"), "--lld", "iscsi", *words)

    def _file(self, name: str, size_mib: int) -> Path:
        file = self._at / f"{name}.img"
        with file.open("xb") as made:
            made.truncate(size_mib * MIB)
        return file

    def _known(self, volume: str, file: Path) -> str:
        self.backing[volume] = file
        return volume
