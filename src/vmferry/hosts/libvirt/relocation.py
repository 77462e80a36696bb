"""What a libvirt host does with another one: serve images, hand a VM over, let it come while it runs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import libvirt

from vmferry import durable
from vmferry.errors import AgentUnreachable, HostRefused, NoSuchVm, SavedStateSpent, VmferryError
from vmferry.hosts.fence import fenced
from vmferry.hosts.interface import DiskTransfer
from vmferry.hosts.libvirt import definition as written
from vmferry.hosts.libvirt import files, host_resources, start, tpm
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.hosts.libvirt.inspect import has_job
from vmferry.hosts.libvirt.migration import Incoming, MigrationTransport, migrate
from vmferry.hosts.libvirt.nbd_exports import Exports
from vmferry.hosts.libvirt.saved_state import SavedState, settled_bytes, spent_name
from vmferry.hosts.records import Prefix
from vmferry.model import Changes, Definition, FencingToken, Lack
from vmferry.transfer import Place, Watch

T = TypeVar("T")
LOST = {
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN),
    *(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN),
}


class LibvirtRelocation:
    """The part of hosts.interface.Host that is about another host."""

    name: str
    _link: LibvirtConnection
    _token: FencingToken | None
    _exports: Exports | None
    _crossing: MigrationTransport | None

    def admit(self) -> None:
        """Return if this host may act for its job. Raises Superseded when a newer epoch of the job has acted."""
        raise NotImplementedError

    def definition(self, uuid: str) -> Definition:
        return self._of("read its definition", uuid, written.read)

    def mark_of(self, path: Path) -> str:
        try:
            status = path.stat()
        except FileNotFoundError:
            return ""
        return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"

    @fenced
    def serve(self, sources: Sequence[Path | Place]) -> Sequence[Place]:
        return [self._server().serve(self._job, source, self.name) for source in sources]

    @fenced
    def serve_growing(self, uuid: str, memory: Path, beyond: int) -> Prefix | None:
        """Serve the settled beginning of a saved state, while the VM's save is in flight; None otherwise.

        libvirt's job is looked at before the file, which may be removed as the job begins, and not before there is a
        file: libvirt would not answer before the job ends.
        """
        if settled_bytes(memory) <= beyond or not self._of("look at its job", uuid, has_job):
            return None
        settled = settled_bytes(memory)
        if settled <= beyond:
            return None
        return Prefix(self._server().serve_beginning(self._job, memory, settled, self.name), settled)

    @fenced
    def end_serving(self) -> None:
        if self._exports is not None:
            self._exports.end(self._job)
        if self._crossing is not None:
            self._crossing.end(self._job)

    def misses(self, definition: Definition, networks: Mapping[str, str]) -> Sequence[str]:
        return self._link.call("list its networks", lambda c: written.misses(c, definition, networks))

    def lacks(self, definition: Definition, changes: Changes) -> Sequence[Lack]:
        return host_resources.lacks(definition, changes)

    def definition_now(self, uuid: str) -> Definition:
        return self._of("read it as it runs", uuid, start.definition_now)

    def lacks_to_start(self, uuid: str) -> Sequence[Lack]:
        def act(conn: libvirt.virConnect) -> Sequence[Lack]:
            domain = written.find(conn, uuid)
            return () if domain is None else start.lacks(conn, domain)

        return self._link.call("look at what it needs to start", act)

    def lacks_to_load(self, uuid: str, memory: Path, changes: Changes) -> Sequence[Lack]:
        return SavedState(self._link, uuid, memory).lacks(changes)

    def refusal(self, definition: Definition, changes: Changes) -> str:
        return self._link.call("check its definition", lambda c: start.refusal(c, definition, changes))

    def content_of(self, path: Path) -> str:
        return files.content_of(path)

    @fenced
    def announce(self, definition: Definition) -> None:
        self._link.call("announce the VM", lambda c: written.announce(c, definition, self._job, self.name))

    def defined(self, uuid: str) -> bool:
        def act(conn: libvirt.virConnect) -> bool:
            there = written.find(conn, uuid)
            return there is not None and bool(there.isPersistent())

        return self._link.call("look whether it is defined", act)

    def announced(self, uuid: str) -> bool:
        def act(conn: libvirt.virConnect) -> bool:
            there = written.find(conn, uuid)
            return there is not None and written.marked(there) == self._job != ""

        return self._link.call("look at the placeholder", act)

    @fenced
    def withdraw(self, uuid: str) -> None:
        def act(conn: libvirt.virConnect) -> None:
            there = written.find(conn, uuid)
            if there is not None and written.marked(there) == self._job:
                written.forget(there)

        self._link.call("remove the placeholder", act)

    @fenced
    def relinquish(self, uuid: str, *, runs: bool) -> None:
        def act(conn: libvirt.virConnect) -> None:
            domain = written.find(conn, uuid)
            if domain is None:
                return
            if written.off(domain):
                written.forget(domain)
            elif runs:
                written.disarm(conn, domain, self._job)
            else:
                raise HostRefused(host=self.name, action="give the VM up", reason="somebody has started it meanwhile")

        self._link.call("give the VM up", act)

    @fenced
    def reclaim(self, definition: Definition) -> None:
        """Take the VM back with its TPM's state: libvirt removes that if QEMU ends while the VM is not defined."""
        if not tpm.folder(definition.uuid).is_dir():
            tpm.write(definition.uuid, definition.tpm)

        def act(conn: libvirt.virConnect) -> None:
            written.write(conn, definition, Changes())
            written.unmask_snapshots(conn.lookupByUUIDString(definition.uuid), definition)

        self._link.call("take the VM back", act)

    @fenced
    def adopt(self, definition: Definition, changes: Changes) -> None:
        if changes.cold:
            tpm.write(definition.uuid, definition.tpm)
        self._link.call("define the VM", lambda c: written.write(c, definition, changes))

    @fenced
    def keep_definition(self, definition: Definition, changes: Changes, path: Path) -> None:
        """Write the definition to a file, and put back the TPM's state, which libvirt removed if a running VM left."""
        if not tpm.folder(definition.uuid).is_dir():
            tpm.write(definition.uuid, definition.tpm)
        durable.write(path, written.text(definition, changes).encode())

    @fenced
    def clear_out(self, uuid: str) -> None:
        def act(conn: libvirt.virConnect) -> None:
            if written.find(conn, uuid) is None:
                tpm.remove(uuid)

        self._link.call("clear out what the VM has left", act)

    @fenced
    def void(self, memory: Path) -> None:
        if durable.there(spent_name(memory)):
            raise SavedStateSpent(path=memory, host=self.name, job=self._job)
        durable.remove(memory)

    @fenced
    def receive(self, uuid: str) -> str:
        return self._cross().receive(self._job)

    @fenced
    def migrate(self, uuid: str, to: str, there: Changes, watch: Watch) -> None:
        with self._cross().to(self._job, to) as incoming:
            migrate(self._link, uuid, Incoming(*incoming), there, watch)

    def standing_s(self, uuid: str) -> float:
        return self._link.stood_s(uuid)

    def arrived(self, uuid: str) -> bool:
        try:
            return self._of("look whether it is there", uuid, _complete)
        except NoSuchVm:
            return False

    # -- within

    @property
    def _job(self) -> str:
        return self._token.job if self._token is not None else ""

    def _server(self) -> Exports:
        if self._exports is None:
            raise HostRefused(host=self.name, action="serve its images", reason="no agent runs there")
        return self._exports

    def _cross(self) -> MigrationTransport:
        if self._crossing is None:
            raise HostRefused(host=self.name, action="migrate to another host", reason="no agent runs there")
        return self._crossing

    def _of(self, action: str, uuid: str, act: Callable[[libvirt.virDomain], T]) -> T:
        def with_it(conn: libvirt.virConnect) -> T:
            domain = written.find(conn, uuid)
            if domain is None:
                raise NoSuchVm(vm=uuid, host=self.name)
            return act(domain)

        return self._link.call(action, with_it)

    @contextmanager
    def _reading(self, transfer: DiskTransfer) -> Iterator[DiskTransfer]:
        """Yield the transfer; what another host serves is read with this host's certificates, or through a tunnel."""
        source = transfer.source
        if not _served(transfer) or not isinstance(source, Place):
            yield transfer
        elif source.through:
            url = urlsplit(source.at)
            with self._cross().connect(url.netloc, source.through) as socket:
                near = Place(f"nbd+unix://{url.path}?socket={quote(str(socket))}", known_as=source.known_as)
                yield replace(transfer, source=near)
        else:
            yield replace(transfer, source=replace(source, tls=self._server().front.certificates))


def _served(transfer: DiskTransfer) -> bool:
    source = transfer.source
    return isinstance(source, Place) and source.encrypted and bool(source.known_as)


@contextmanager
def served_by_another(transfer: DiskTransfer) -> Iterator[None]:
    """Raise AgentUnreachable where a serving host is lost: that is no damaged image, so the job waits for it."""
    try:
        yield
    except VmferryError as error:
        cause = error.__cause__
        if _served(transfer) and isinstance(cause, OSError) and cause.errno in LOST:
            source = transfer.source
            named = source.known_as.partition(":")[0] if isinstance(source, Place) else ""
            raise AgentUnreachable(host=named, reason=cause.strerror or str(cause)) from error
        raise


def _complete(domain: libvirt.virDomain) -> bool:
    """Is all of the VM here, rather than still coming or starting?"""
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return reason not in (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
    return bool(state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED))
