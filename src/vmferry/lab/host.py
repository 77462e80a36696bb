"""A lab host: a libvirtd and QEMUs of their own, beside those of the machine, all below one folder.

    with LabHost(Path("/tmp/lab")).up() as host:
        connection = host.connect()

Inside and outside, every path below the folder means the same file; libvirt's own folders differ.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import libvirt

from vmferry.errors import LabPlaceUnfit, LabProgramFailed, LabRunning, NoLab
from vmferry.lab.domain import GuestSpec
from vmferry.lab.guests import LabGuest
from vmferry.lab.keeper import BOUND
from vmferry.lab.processes import in_lab, kill_all, kill_in_lab, pid_in
from vmferry.lab.programs import program, spawn, wait_for
from vmferry.lab.record import LabRecord, read_record, write_record
from vmferry.lab.storage import DEFAULT_STORAGES, StorageSpec, make_storage, need_loop_mounts, remove, share, wear_out

DEFAULT_PLACE = Path("/var/lib/vmferry-lab")
LONGEST_SOCKET_PATH = 107  # sun_path of unix(7), less the final zero
NEEDED = ("libvirtd", "qemu-system-x86_64", "qemu-img", "unshare", "ip")
LIBVIRTD_CONF = """host_uuid = "{host_uuid}"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
log_outputs = "3:stderr"
"""
QEMU_CONF = """security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
swtpm_user = "root"
swtpm_group = "root"
"""


class LabHost:
    """A lab at one folder, running or not; any process may hold one and use it."""

    def __init__(self, at: Path = DEFAULT_PLACE) -> None:
        self.at = at.resolve()  # mountinfo and the lab's namespaces know no symbolic links
        self._children: list[subprocess.Popen[bytes]] = []

    # -- up and down

    def up(self, storages: Sequence[StorageSpec] = DEFAULT_STORAGES, *, owner_pid: int | None = None) -> Self:
        """Start the lab; it ends with `owner_pid` when one is given. All of it, or nothing, is left behind.

        Raises LabNeeds, LabRunning, LabPlaceUnfit, LabProgramFailed, LabLate.
        """
        self._check_place()
        need_loop_mounts()
        for name in NEEDED:
            program(name)
        self._claim()
        try:
            self._build(storages, owner_pid)
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """End the lab's processes and remove its folder; a lab that is not there, or half there, is fine too."""
        record = read_record(self.at)
        if record is None:
            return
        kill_all(self.at, first=pid_in(self._libvirtd_pid_file), last=record.keeper_pid)
        for child in self._children:
            child.wait()
        self._children.clear()
        remove(self.at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- what it offers

    @property
    def socket(self) -> Path:
        """libvirtd's read-write socket, as seen from outside."""
        return self.at / "run/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        """What libvirt clients on this machine connect to."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def record(self) -> LabRecord:
        """What the lab wrote about itself; NoLab when there is none."""
        record = read_record(self.at)
        if record is None:
            raise NoLab(at=self.at)
        return record

    @property
    def exists(self) -> bool:
        """Whether there is a lab at this folder, living or left over."""
        return read_record(self.at) is not None

    @property
    def running(self) -> bool:
        """Whether the lab's keeper lives; libvirtd may still be down."""
        record = read_record(self.at)
        return bool(record and record.keeper_pid and in_lab(record.keeper_pid, self.at))

    def connect(self) -> libvirt.virConnect:
        """A new connection to the lab's libvirtd; the caller closes it."""
        return libvirt.open(self.uri)

    def storage(self, name: str) -> Path:
        """The folder of a storage; LabPlaceUnfit when the lab has none of that name."""
        if name not in self.record.storages:
            raise LabPlaceUnfit(at=self.at / name, reason=f"the storages are {', '.join(self.record.storages)}")
        return self.at / name

    def add_storage(self, name: str, fs: str = "ext4", size_mib: int = 2048) -> Path:
        """Make one more storage, usable at once by what already runs in the lab."""
        record = self.record
        write_record(self.at, record.with_(storages=(*record.storages, name)))
        return make_storage(self.at, StorageSpec(name, fs, size_mib))

    def wear_out(self, name: str, left_mib: int) -> None:
        """From now on only the first `left_mib` MiB of a storage can be read, the rest gives EIO."""
        wear_out(self.storage(name).parent, name, left_mib)

    def guest(self, spec: GuestSpec) -> LabGuest:
        """Make a guest and start it; it writes on each disk when this returns. Raises as LabGuest.make."""
        return LabGuest.make(self, spec)

    def find_guest(self, name: str) -> LabGuest:
        """A guest that this or another process made; NoSuchVm when there is none."""
        return LabGuest.find(self, name)

    def inside(self, *argv: str) -> list[str]:
        """The words that run a program inside the lab's namespaces, where libvirt's own folders are the lab's."""
        return [program("nsenter"), "-t", str(self.record.keeper_pid), "-m", "-n", *argv]

    # -- its processes

    @property
    def libvirtd_pid(self) -> int | None:
        """libvirtd's process id; None while it is down."""
        pid = pid_in(self._libvirtd_pid_file)
        return pid if pid and in_lab(pid, self.at) else None

    def qemu_pid(self, vm: str) -> int | None:
        """The process id of a VM's QEMU; None when the VM is off."""
        pid = pid_in(self.at / "run/libvirt/qemu" / f"{vm}.pid")
        return pid if pid and in_lab(pid, self.at) else None

    def kill_libvirtd(self) -> None:
        """SIGKILL libvirtd alone; the VMs run on."""
        if pid := self.libvirtd_pid:
            kill_in_lab(pid, self.at)

    def start_libvirtd(self) -> None:
        """Start libvirtd again if it is down, and wait until it answers."""
        keeper = self.record.keeper_pid
        if not self.running or keeper is None:
            raise NoLab(at=self.at)
        wait_for(lambda: self._asked_and_answered(keeper), "libvirtd to answer", log=self._libvirtd_log)

    def kill_qemu(self, vm: str) -> None:
        """SIGKILL a VM's QEMU, which is a power failure to the guest."""
        if pid := self.qemu_pid(vm):
            kill_in_lab(pid, self.at)

    # -- building

    def _check_place(self) -> None:
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            raise LabPlaceUnfit(at=self.at, reason="its path is too long for libvirtd's unix socket")
        if self.at.is_relative_to("/run") or self.at.is_relative_to("/var/run"):
            raise LabPlaceUnfit(at=self.at, reason="the lab has a /run of its own, which would hide it")
        if self.running:
            raise LabRunning(at=self.at)

    def _claim(self) -> None:
        """Make the folder, or take that of a lab whose processes have died; never that of something else."""
        self.down()
        self.at.mkdir(parents=True, exist_ok=True)
        if any(self.at.iterdir()):
            raise LabPlaceUnfit(at=self.at, reason="it holds files that are not a lab's")
        write_record(self.at, LabRecord(lab_id=str(uuid.uuid4())))

    def _build(self, storages: Sequence[StorageSpec], owner_pid: int | None) -> None:
        if owner_pid is not None:
            self._guard(owner_pid)
        share(self.at)
        for name in BOUND:
            (self.at / name).mkdir()
        (self.at / "guests").mkdir()
        (self.at / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF.format(host_uuid=self.record.lab_id))
        (self.at / "etc/qemu.conf").write_text(QEMU_CONF)
        for spec in storages:
            self.add_storage(spec.name, spec.fs, spec.size_mib)
        self._keep()

    def _guard(self, owner_pid: int) -> None:
        words = [sys.executable, "-m", "vmferry.lab.guard", str(self.at), self.record.lab_id, str(owner_pid)]
        self._children.append(spawn(words, Path(os.devnull)))

    def _keep(self) -> None:
        namespaces = [program("unshare"), "--mount", "--net", "--propagation", "slave", "--"]
        words = [*namespaces, sys.executable, "-m", "vmferry.lab.keeper", str(self.at)]
        keeper = spawn(words, self._libvirtd_log)
        self._children.append(keeper)
        write_record(self.at, self.record.with_(keeper_pid=keeper.pid))
        wait_for(
            lambda: keeper.poll() is not None or self._answers(), "the lab's libvirtd to answer", log=self._libvirtd_log
        )
        if keeper.poll() is not None:
            raise LabProgramFailed(program="the keeper", reason=self._libvirtd_log.read_text()[-500:])

    def _asked_and_answered(self, keeper: int) -> bool:
        if self._answers():
            return True
        os.kill(keeper, signal.SIGUSR1)  # again and again: the one before may not have been reaped yet
        return False

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(str(self.socket))
            return self.libvirtd_pid is not None
        return False

    @property
    def _libvirtd_pid_file(self) -> Path:
        return self.at / "run/libvirtd.pid"

    @property
    def _libvirtd_log(self) -> Path:
        return self.at / "log/libvirtd.log"
