"""What libvirt has written down about the VMs of one host: changed in place, kept over a move, forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import libvirt

from vmferry.errors import NoSuchVm
from vmferry.hosts.fence import fenced
from vmferry.hosts.libvirt import checkpoints, inspect, pools
from vmferry.hosts.libvirt import definition as written
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.model import Definition, Placed, Power, Where

R = TypeVar("R")


class VmDefinitions:
    """The part of hosts.interface.Host that is about definitions, snapshots and checkpoints."""

    name: str
    _link: LibvirtConnection

    def admit(self) -> None:
        """Return if this host may act for its job. Raises Superseded when a newer epoch of the job has acted."""
        raise NotImplementedError

    @fenced
    def point(
        self,
        uuid: str,
        disks: Mapping[str, Placed],
        files: Mapping[Path, Path],
        sources: Mapping[str, Sequence[Where]],
    ) -> Sequence[str]:
        with self._link.redefining:
            return self._call(uuid, "change its definition", lambda d: written.point(d, disks, files, sources))

    @fenced
    def rewrite_snapshots(self, uuid: str, paths: Mapping[Path, Path]) -> None:
        with contextlib.suppress(NoSuchVm):  # gone: nothing is written down of it
            self._call(uuid, "change its snapshots", lambda d: written.rewrite_snapshots(d, paths))

    @fenced
    def refresh_pools(self, folders: Sequence[Path]) -> None:
        self._link.call("refresh its pools", lambda c: pools.refresh(c, folders))

    @fenced
    def forget_checkpoints(self, uuid: str) -> None:
        self._call(uuid, "forget its checkpoints", checkpoints.forget)

    @fenced
    def recall_checkpoints(self, definition: Definition) -> None:
        self._call(definition.uuid, "write its checkpoints down", lambda d: checkpoints.recall(d, definition))

    @fenced
    def drop_checkpoints(self, definition: Definition) -> None:
        self._call(definition.uuid, "drop its checkpoints", lambda d: checkpoints.drop(d, definition))

    @fenced
    def make_persistent(self, uuid: str) -> None:
        def act(conn: libvirt.virConnect) -> None:
            domain = conn.lookupByUUIDString(uuid)
            if not domain.isPersistent():
                flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
                conn.defineXML(domain.XMLDesc(flags))

        self._link.call("define it", act)

    @fenced
    def make_transient(self, uuid: str) -> None:
        def act(domain: libvirt.virDomain) -> None:
            if domain.isPersistent() and inspect.power(domain) is not Power.OFF:
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM)

        with contextlib.suppress(NoSuchVm):  # it ended while it was transient: nothing is defined
            self._call(uuid, "make it transient again", act)

    # -- within

    def _lookup(self, conn: libvirt.virConnect, name: str) -> libvirt.virDomain:
        for find in (conn.lookupByName, conn.lookupByUUIDString):
            try:
                return find(name)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise
        raise inspect.no_such_vm(conn, name, self.name)

    def _call(self, uuid: str, action: str, act: Callable[[libvirt.virDomain], R]) -> R:
        return self._link.call(action, lambda conn: self._acted(act, self._lookup(conn, uuid)))

    def _acted(self, act: Callable[[libvirt.virDomain], R], domain: libvirt.virDomain) -> R:
        """Call `act` with the domain, and return its result. Raises NoSuchVm if the VM is gone.

        A VM without a definition may go between two calls: to another host, say.
        """
        try:
            return act(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise NoSuchVm(vm=domain.name(), host=self.name) from error
            raise
