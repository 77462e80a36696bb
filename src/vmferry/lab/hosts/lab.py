"""A lab of several hosts on one machine, joined by a network of its own.

    with Lab(Path("/tmp/lab")).up(hosts=2) as lab:
        one, two = lab.hosts
        guest = LabGuest.make(one, GuestSpec("web"))
        lab.link("host2").shape("100mbit")
        ...
        guest.moved_to(two)
        assert guest.verdict().clean

Each host has storages of its own, which no other host can reach; shared storages are at one path on all hosts.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import Self

from vmferry.errors import LabPlaceUnfit, LabRunning, NoLab, NoSuchLabHost
from vmferry.lab.hosts.host import DEFAULT_PLACE, LabHost
from vmferry.lab.hosts.links import BRIDGE, Cable
from vmferry.lab.hosts.network import MANAGER, SWITCH, address, numbers
from vmferry.lab.hosts.node import LabNode, claim, fit, guard
from vmferry.lab.hosts.processes import kill_all
from vmferry.lab.hosts.record import HostsRecord, LabRecord, read_hosts, write_hosts
from vmferry.lab.hosts.storage import DEFAULT_STORAGES, StorageSpec, make_storage, need_loop_mounts, remove
from vmferry.lab.programs import program

SHARED: Sequence[StorageSpec] = (StorageSpec("shared", "ext4"),)
MOST_HOSTS = 16


class Lab:
    """A lab of several hosts at one folder, running or not; any process may create this object and use it."""

    def __init__(self, at: Path = DEFAULT_PLACE) -> None:
        self.at = at.resolve()
        self.manager = LabNode(self.at / MANAGER)
        """Where the manager's commands run: on the network of the hosts, and with none of their files."""
        self._switch = LabNode(self.at / SWITCH)
        self._hosts: dict[str, LabHost] = {}
        self._children: list[Popen[bytes]] = []

    # -- up and down

    def up(
        self,
        hosts: int = 2,
        storages: Sequence[StorageSpec] = DEFAULT_STORAGES,
        shared: Sequence[StorageSpec] = SHARED,
        *,
        owner_pid: int | None = None,
    ) -> Self:
        """Start host1, host2, ..., completely or not at all; they end with the process `owner_pid` if one is given.

        Raises LabNeeds, LabRunning, LabPlaceUnfit, LabProgramFailed, LabLate.
        """
        if not 1 <= hosts <= MOST_HOSTS:
            raise LabPlaceUnfit(at=self.at, reason=f"it may have 1 to {MOST_HOSTS} hosts, not {hosts}")
        fit(self.at)
        need_loop_mounts()
        for name in ("ip", "tc"):
            program(name)
        if self.running:
            raise LabRunning(at=self.at)
        self.down()
        claim(self.at)
        names = tuple(f"host{number}" for number in range(1, hosts + 1))
        write_hosts(self.at, HostsRecord(str(uuid.uuid4()), names, tuple(spec.name for spec in shared)))
        try:
            self._build(storages, shared, owner_pid)
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """End all nodes of the lab and remove its folder; no error if it is gone, or half gone."""
        if read_hosts(self.at) is None:
            return
        for node in (*self.hosts, self.manager, self._switch):
            node.down()
        kill_all(self.at)
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
    def record(self) -> HostsRecord:
        """The record that the lab wrote about itself. Raises NoLab if there is none."""
        record = read_hosts(self.at)
        if record is None:
            raise NoLab(at=self.at)
        return record

    @property
    def exists(self) -> bool:
        """Is there a lab of several hosts at this folder, running or left over?"""
        return read_hosts(self.at) is not None

    @property
    def running(self) -> bool:
        """Does any node of the lab run?"""
        return self.exists and any(node.running for node in (*self.hosts, self.manager, self._switch))

    @property
    def hosts(self) -> tuple[LabHost, ...]:
        """The hosts of the lab, in order."""
        return tuple(map(self.host, self.record.hosts))

    def host(self, name: str) -> LabHost:
        """Return the host of that name. Raises NoSuchLabHost."""
        names = self.record.hosts
        if name not in names:
            raise NoSuchLabHost(host=name, present=", ".join(names))
        return self._hosts.setdefault(name, LabHost(self.at / name))

    def node(self, name: str) -> LabNode:
        """Return the host of that name, or the manager's node. Raises NoSuchLabHost."""
        return self.manager if name == MANAGER else self.host(name)

    def link(self, name: str) -> Cable:
        """Return the cable of one host, or of the manager. Raises NoSuchLabHost."""
        return Cable(self._switch, self.node(name))

    def shared(self, name: str = "shared") -> Path:
        """Return the folder of a storage that all hosts see."""
        return self.at / name

    # -- building

    def _build(self, storages: Sequence[StorageSpec], shared: Sequence[StorageSpec], owner_pid: int | None) -> None:
        record = self.record
        if owner_pid is not None:
            self._children.append(guard(self.at, record.lab_id, owner_pid))
        for spec in shared:
            make_storage(self.at, spec)
        self._switch.keep(self._told(SWITCH))
        self._switch.run("ip", "link", "add", BRIDGE, "type", "bridge")
        self._switch.run("ip", "link", "set", BRIDGE, "up")
        self.manager.keep(self._told(MANAGER))
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda host: host.up(storages, joined=self._told(host.at.name)), self.hosts))
        self._join()

    def _join(self) -> None:
        """Plug in every node's cable, and make every node's hardware address known to all others."""
        numbered = numbers(self.record.hosts)
        for name, number in numbered.items():
            link = self.link(name)
            link.plug(number)
            for other in set(numbered.values()) - {number}:
                link.know(other)

    def _told(self, name: str) -> LabRecord:
        """Return the record that a node keeps about itself."""
        number = numbers(self.record.hosts).get(name)
        shared = () if name in (MANAGER, SWITCH) else self.record.shared
        where = address(number) if number else ""
        return LabRecord(str(uuid.uuid4()), name=name, within=str(self.at), address=where, shared=shared)


def lab_at(at: Path) -> Lab | LabHost | None:
    """Return the lab in a folder, of several hosts or of one, running or left over; None when there is none."""
    several, alone = Lab(at), LabHost(at)
    if several.exists:
        return several
    return alone if alone.exists else None
