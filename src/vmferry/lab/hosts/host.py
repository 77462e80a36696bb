"""A lab host: a libvirtd and QEMUs of their own, beside those of the machine, all below one folder.

    with LabHost(Path("/tmp/lab")).up() as host:
        connection = host.connect()

Inside and outside the lab, every path below the folder means the same file; libvirt's own folders differ.
"""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import libvirt

from vmferry.errors import LabPlaceUnfit, LabRunning, NoLab
from vmferry.lab.hosts.node import LabNode, claim, fit, guard
from vmferry.lab.hosts.processes import in_lab, kill_in_lab, pid_in
from vmferry.lab.hosts.record import LabRecord, read_hosts, write_record
from vmferry.lab.hosts.storage import DEFAULT_STORAGES, StorageSpec, make_storage, need_loop_mounts, share, wear_out
from vmferry.lab.hosts.subreaper import GUESTS
from vmferry.lab.programs import program, wait_for

DEFAULT_PLACE = Path("/var/lib/vmferry-lab")
LONGEST_SOCKET_PATH = 107  # sun_path of unix(7), less the final zero
FOLDERS = ("run", "etc", "etc/migration", "lib", "cache", "log", "ca", GUESTS)
NEEDED = ("libvirtd", "qemu-system-x86_64", "qemu-img", "unshare", "ip")
LIBVIRTD_CONF = """host_uuid = "{host_uuid}"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
log_outputs = "3:stderr"
"""
LISTEN_CONF = """listen_tcp = 1
listen_addr = "0.0.0.0"
auth_tcp = "none"
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

MIGRATION_CONF = """migration_host = "{address}"
migrate_tls_x509_cert_dir = "/etc/libvirt/migration"
"""
"""The folder, etc/migration below the host's own, is empty: TLS between libvirts is for whoever fills it."""


class LabHost(LabNode):
    """A lab of one host, or one host of a lab of several, at one folder; running or not."""

    def __init__(self, at: Path = DEFAULT_PLACE) -> None:
        super().__init__(at)

    # -- up and down

    def up(
        self,
        storages: Sequence[StorageSpec] = DEFAULT_STORAGES,
        *,
        owner_pid: int | None = None,
        joined: LabRecord | None = None,
    ) -> Self:
        """Start the lab host, completely or not at all; it ends with the process `owner_pid` if one is given.

        `joined`: the record of a host in a lab of several, see lab/hosts/lab.py.
        Raises LabNeeds, LabRunning, LabPlaceUnfit, LabProgramFailed, LabLate.
        """
        self._check_place()
        need_loop_mounts()
        for name in NEEDED:
            program(name)
        if self.running:
            raise LabRunning(at=self.at)
        self.down()  # a lab whose processes have died
        claim(self.at)
        write_record(self.at, joined or LabRecord(lab_id=str(uuid.uuid4())))
        try:
            self._build(storages, owner_pid)
        except BaseException:
            self.down()
            raise
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- what it offers

    @property
    def socket(self) -> Path:
        """libvirtd's read-write socket, as seen from outside the lab."""
        return self.at / "run/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        """The libvirt URI of this host for clients on this machine."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def name(self) -> str:
        """The host's name in a lab of several hosts; the machine's own name for a lab of one host."""
        return self.record.name or socket.gethostname()

    @property
    def address(self) -> str:
        """The address for the other hosts of the lab and the manager; empty for a lab of one host."""
        return self.record.address

    @property
    def tcp_uri(self) -> str:
        """The libvirt URI of this host for clients on the lab's own network."""
        return f"qemu+tcp://{self.address}/system"

    def neighbours(self) -> list[LabHost]:
        """Return all hosts of this host's lab, this one among them."""
        within = self.record.within
        record = read_hosts(Path(within)) if within else None
        return [LabHost(Path(within) / name) for name in record.hosts] if record else [self]

    def connect(self) -> libvirt.virConnect:
        """Return a new connection to the lab's libvirtd; the caller closes it."""
        return libvirt.open(self.uri)

    def storage(self, name: str) -> Path:
        """Return the folder of a storage. Raises LabPlaceUnfit if the lab has none of that name."""
        record = self.record
        if name in record.shared:
            return Path(record.within) / name
        if name not in record.storages:
            raise LabPlaceUnfit(at=self.at / name, reason=f"the storages are {', '.join(self.storages)}")
        return self.at / name

    @property
    def storages(self) -> tuple[str, ...]:
        """The names of this host's storages, its own first, then the shared ones."""
        return (*self.record.storages, *self.record.shared)

    def add_storage(
        self, name: str, fs: str = "ext4", size_mib: int = 2048, *, direct: bool = False, sector_bytes: int = 512
    ) -> Path:
        """Make one more storage and return its folder; running programs in the lab see it at once. See StorageSpec."""
        record = self.record
        write_record(self.at, record.with_(storages=(*record.storages, name)))
        return make_storage(self.at, StorageSpec(name, fs, size_mib, direct, sector_bytes))

    def wear_out(self, name: str, left_mib: int) -> None:
        """Make a storage fail: read-only, with EIO for all reads after the first `left_mib` MiB."""
        wear_out(self.storage(name).parent, name, left_mib)

    def guest_folder(self, uuid_: str) -> Path:
        """Return the folder of a guest's console and commands on this host."""
        return self.at / GUESTS / uuid_[:8]

    def guest_folder_inside(self, uuid_: str) -> Path:
        """Return a guest's folder as this host's QEMU sees it: at one path on every host of a lab."""
        return Path(self.record.within or self.at) / GUESTS / uuid_[:8]

    # -- its processes

    @property
    def libvirtd_pid(self) -> int | None:
        """libvirtd's process id; None while it is down."""
        pid = pid_in(self._libvirtd_pid_file)
        return pid if pid and in_lab(pid, self.at) else None

    def qemu_pid(self, vm: str) -> int | None:
        """Return the process id of a VM's QEMU; None when the VM is off."""
        pid = pid_in(self.at / "run/libvirt/qemu" / f"{vm}.pid")
        return pid if pid and in_lab(pid, self.at) else None

    def kill_libvirtd(self) -> None:
        """SIGKILL libvirtd alone; the VMs run on."""
        if pid := self.libvirtd_pid:
            kill_in_lab(pid, self.at)

    def start_libvirtd(self) -> None:
        """Start libvirtd again if it is down, and wait until it answers. Raises NoLab if the host does not run."""
        if not self.running:
            raise NoLab(at=self.at)
        keeper = self.keeper_pid
        wait_for(lambda: self._asked_and_answered(keeper), "libvirtd to answer", log=self._libvirtd_log)

    def kill_qemu(self, vm: str) -> None:
        """SIGKILL a VM's QEMU, which is a power failure to the guest."""
        if pid := self.qemu_pid(vm):
            kill_in_lab(pid, self.at)

    # -- building

    def _check_place(self) -> None:
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET_PATH:
            raise LabPlaceUnfit(at=self.at, reason="its path is too long for libvirtd's unix socket")
        fit(self.at)

    def _build(self, storages: Sequence[StorageSpec], owner_pid: int | None) -> None:
        if owner_pid is not None:
            self._children.append(guard(self.at, self.record.lab_id, owner_pid))
        share(self.at)
        for name in FOLDERS:
            (self.at / name).mkdir()
        (self.at / "etc/libvirtd.conf").write_text(self._libvirtd_conf())
        (self.at / "etc/qemu.conf").write_text(
            QEMU_CONF + (MIGRATION_CONF.format(address=self.address) if self.address else "")
        )
        for spec in storages:
            self.add_storage(spec.name, spec.fs, spec.size_mib, direct=spec.direct)
        self._start_keeper()
        wait_for(self._answers, "the lab's libvirtd to answer", log=self._libvirtd_log)

    def _libvirtd_conf(self) -> str:
        alone = LIBVIRTD_CONF.format(host_uuid=self.record.lab_id)
        return alone + LISTEN_CONF if self.record.within else alone

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
    def _libvirtd_log(self) -> Path:
        return self.at / "log/libvirtd.log"
