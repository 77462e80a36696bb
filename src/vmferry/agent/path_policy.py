"""Which paths a call may name: in declared storages, and files of the one VM that its job moves. Others are refused.

Parameters and fields with the names in READ_ONLY are only read; every other path may be written.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from vmferry import durable
from vmferry.agent.metrics import REFUSED
from vmferry.agent.storages import Storages
from vmferry.errors import PathRefused, VmRefused
from vmferry.hosts.interface import Host
from vmferry.hosts.wire import Call
from vmferry.model import Definition, FencingToken, Folder, Url, Vm, Where
from vmferry.qemu.names import where_named
from vmferry.qemu.places import Scheme
from vmferry.transfer import Place, Transfer

READ_ONLY = frozenset({"source", "sources", "backing", "media"})
ABROAD = frozenset({"there"})
"""Paths of another host, which its own agent looks at."""
KEPT_JOBS = 1000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


class PathPolicy(Protocol):
    """Checks and translates the paths in calls that arrive, and in answers that go out."""

    def allowed(self, call: Call, token: FencingToken | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments translated for this host. Raises PathRefused, VmRefused."""

    def told(self, answer: Any) -> Any:
        """Return the answer translated for other hosts."""


class ConfinedBookmarks:
    """Places a transfer's bookmarks in the folder of the agent that writes, whatever folder the manager names."""

    def __init__(self, host: str, state: Path) -> None:
        self._host = host
        self._folder = state / "bookmarks"

    def here(self, asked: Path) -> Path:
        """Return the local path by the last two parts of the name: job and transfer. Raises PathRefused."""
        names = asked.parts[-2:]
        if len(names) < 2 or any(not _NAME.fullmatch(name) or name.startswith(".") for name in names):
            raise PathRefused(host=self._host, path=asked, reason="that is no name for bookmarks")
        folder = self._folder / names[0]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / names[1]


@dataclass(frozen=True, slots=True)
class _Use:
    """The purpose for which a call names a path: does it act, only read, and for which job and VM."""

    acts: bool
    read_only: bool
    job: str
    vm: str | None
    """The VM that the job moves, once it has named one."""

    def of(self, name: str) -> _Use:
        return replace(self, read_only=self.read_only or name in READ_ONLY)


class ToStorages:
    """Confines every path to the declared storages. Implements PathPolicy."""

    def __init__(self, host: str, state: Path, storages: Storages, looking: Host, tls: Path) -> None:
        """Confine to `storages`.

        `looking`: the real host, to ask which VM a file belongs to; `tls`: our certificates, for sources over NBD.
        """
        self._host = host
        self._storages = storages
        self._looking = looking
        self._tls = tls
        self._bookmarks = ConfinedBookmarks(host, state)
        self._vms: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def allowed(self, call: Call, token: FencingToken | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        vm = self._own_vm(call, token, _named(arguments))
        reads = call.looks and call.name != "probe"  # which makes a file, if one that is gone at once
        use = _Use(not call.looks, reads, token.job if token else "", vm)
        return {name: value if name in ABROAD else self._walk(value, use.of(name)) for name, value in arguments.items()}

    def told(self, answer: Any) -> Any:
        """Add the host's name to a folder's file system number, which two hosts may share, and the storage's UUID."""
        if not isinstance(answer, Folder) or not answer.exists:
            return answer
        storage = self._storages.of(answer.path.resolve())
        uuid = storage.uuid if storage is not None else ""
        return replace(answer, filesystem=f"{self._host}:{answer.filesystem}", storage=uuid)

    # -- VMs

    def _own_vm(self, call: Call, token: FencingToken | None, named: str | None) -> str | None:
        """Return the VM that a job moves: the first that it acts on. Raises VmRefused for another."""
        if token is None:
            return None
        with self._lock:
            own = self._vms.get(token.job)
            if call.looks or named is None:
                return own
            if own is not None and own != named:
                REFUSED.labels("vm").inc()
                raise VmRefused(host=self._host, job=token.job, vm=named, own=own)
            self._vms[token.job] = named
            self._vms.move_to_end(token.job)
            while len(self._vms) > KEPT_JOBS:
                self._vms.popitem(last=False)
            return named

    # -- paths

    def _walk(self, value: Any, use: _Use) -> Any:
        match value:
            case Path():
                self._check(value, use)
                return value
            case Url():
                return self._url(value, use)
            case Place():
                return self._place(value, use)
            case Transfer():
                source, destination = self._walk(value.source, use.of("source")), self._walk(value.destination, use)
                bookmarks = self._bookmarks.here(value.bookmarks)
                return replace(value, source=source, destination=destination, bookmarks=bookmarks)
            case Mapping():  # its keys are names from before, which nothing opens
                return {key: self._walk(held, use) for key, held in value.items()}
            case tuple() if hasattr(value, "_fields"):
                return type(value)(*(self._walk(held, use) for held in value))
            case tuple() | list():
                return [self._walk(held, use) for held in value]
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: self._walk(getattr(value, f.name), use.of(f.name)) for f in fields(value)})
        return value

    def _url(self, url: Url, use: _Use) -> Url:
        for path in parse_qs(urlsplit(url.url).query).get("socket", []):
            self._check(Path(path), use)
        return url

    def _place(self, place: Place, use: _Use) -> Place:
        if place.scheme is Scheme.PATH:
            self._check(place.path, use)
        elif place.scheme is Scheme.JSON:
            self._walk(self._named(place.at), use)
        else:
            self._url(Url(place.at), use)
        return replace(place, tls=self._tls) if place.encrypted else place

    def _named(self, name: str) -> Where:
        try:
            return where_named(name)[0]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refused(Path(name[:200]), "what it means cannot be told") from error

    def _check(self, path: Path, use: _Use) -> None:
        """Raise PathRefused unless this use may name the path.

        It has to lie in a usable storage, or for reading beside a VM, and be no other VM's disk.
        """
        if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise self._refused(path, "name it by an absolute path without ..")
        real = path.resolve()
        storage = self._storages.of(real)
        if storage is None:
            if use.read_only and self._beside_a_vm(path):
                return
            raise self._refused(path, "it lies in no storage of that host")
        if trouble := storage.trouble:
            raise self._refused(path, trouble)
        if real != storage.real and not _stays(storage.real, real.parent):
            raise self._refused(path, "its folder was changed meanwhile")
        if use.acts and f"vmferry-{use.job}" not in path.name:
            self._check_owner(path, use)

    def _check_owner(self, path: Path, use: _Use) -> None:
        """Raise PathRefused if the file belongs to another VM's disks; a base shared with it may be read."""
        if not durable.there(path) or (use.read_only and use.vm is None):
            return
        users = set(self._looking.users(path))
        if not users - {use.vm}:
            return
        users -= {user for user in users if use.read_only and self._disc_of(user, path)}
        if users and (use.vm not in users if use.read_only else users - {use.vm}):
            raise self._refused(path, f"it is a disk of VM {', '.join(sorted(users - {use.vm}))}")

    def _disc_of(self, uuid: str, path: Path) -> bool:
        """Has that VM the file in CD-ROM drives only? One disc may lie in the drives of many VMs."""
        disks = [disk for disk in self._looking.vm(uuid).disks if path in {image.path for image in disk.chain}]
        return all(disk.device == "cdrom" for disk in disks) and bool(disks)

    def _beside_a_vm(self, path: Path) -> bool:
        """Is it a VM's firmware variables or TPM state, or their folder? libvirt chose where they lie."""
        return any(path in (own, own.parent) for vm in self._looking.vms() for own in _beside(vm))

    def _refused(self, path: Path, reason: str) -> PathRefused:
        REFUSED.labels("path").inc()
        return PathRefused(host=self._host, path=path, reason=reason)


def _named(arguments: Mapping[str, Any]) -> str | None:
    """Return the UUID of the VM that a call acts on, from its arguments: a restarted agent knows of no earlier call."""
    definition = arguments.get("definition")
    uuid = definition.uuid if isinstance(definition, Definition) else arguments.get("uuid")
    return uuid if isinstance(uuid, str) else None


def _beside(vm: Vm) -> list[Path]:
    return [path for path in (vm.nvram, vm.tpm) if path is not None]


def _stays(root: Path, folder: Path) -> bool:
    """Is the folder, as it is now, really below the storage's root? Walks down from there, following no link."""
    if not folder.is_relative_to(root):
        return False
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        at = os.open(root, flags)
        for name in folder.relative_to(root).parts:
            below = at
            try:
                at = os.open(name, flags, dir_fd=below)
            finally:
                os.close(below)
    except FileNotFoundError:
        return True  # a folder that is not there yet: whoever uses it finds that out
    except OSError:
        return False
    os.close(at)
    return True
