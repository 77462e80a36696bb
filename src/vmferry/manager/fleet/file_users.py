"""Finds other users of a file: other jobs of this manager, and other hosts that have the same storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vmferry.errors import VmferryError
from vmferry.hosts.asking import AskUsers
from vmferry.hosts.interface import Host, Hosts
from vmferry.manager.store import Store
from vmferry.model import ACTIVE, FileUser, NamedIn, Plan, UserKind, Where
from vmferry.model.files import LOCKED
from vmferry.model.fleet import StorageView
from vmferry.process.state import is_local

Storages = Callable[[], Sequence[StorageView]]
"""Those that are declared, of all hosts."""


class FleetFileUsers:
    """Finds the users of files: on the host itself, among jobs, and on all other hosts that may know of a file."""

    def __init__(self, hosts: Hosts, store: Store, storages: Storages) -> None:
        self._hosts = hosts
        self._store = store
        self._storages = storages

    def asking(self, job: str = "") -> AskUsers:
        """Return a function that finds the users of files for one job, whose own use does not count."""

        def ask(host: Host, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
            found = list(host.file_users(files, folders))
            elsewhere = list(self._hosts_sharing(host, files, folders))
            runs = {user.file for user in (*found, *elsewhere) if user.named_in is NamedIn.RUNNING}
            locks = [user for user in elsewhere if user.how == LOCKED and user.file in runs]  # of the one that runs it
            return [*found, *self._jobs(host, files, job), *(user for user in elsewhere if user not in locks)]

        return ask

    def claims(self, plan: Plan) -> Iterator[tuple[str, Plan, Where]]:
        """Yield each active job that makes a file which this plan would make, with its plan and that file."""
        made = _made(plan, plan.to or plan.connect)
        for row in self._store.rows(ACTIVE):
            for file in sorted(made & _made(row.plan, plan.to or plan.connect), key=str):
                yield row.id, row.plan, file

    def _jobs(self, host: Host, files: Sequence[Where], but: str) -> Iterator[FileUser]:
        for row in self._store.rows(ACTIVE):
            if row.id == but:
                continue
            named = _named(row.plan, host.name)
            for file in files:
                if file in named or (isinstance(file, Path) and _real(host, file) in named):
                    yield FileUser(file, UserKind.JOB, f"job {row.id}", f"it moves VM {row.plan.vm}", row.id)

    def _hosts_sharing(self, host: Host, files: Sequence[Where], folders: Sequence[Path]) -> Iterator[FileUser]:
        """Yield the files' users on other hosts that have the same storage.

        It is recognized by the marker in a declared storage: it may be mounted elsewhere there.
        """
        storages = self._storages()
        for own in (s for s in storages if s.host == host.name):
            for other in storages:
                if other.uuid == own.uuid and other.host != host.name:
                    yield from self._at(other, own, files, folders)

    def _at(
        self, other: StorageView, own: StorageView, files: Sequence[Where], folders: Sequence[Path]
    ) -> Iterator[FileUser]:
        there: dict[Where, Path] = {}
        for file in files:
            if isinstance(file, Path) and (place := _moved(file, own, other)) is not None:
                there[place] = file
        if not there:
            return
        beside = [place for folder in folders if (place := _moved(folder, own, other)) is not None]
        try:
            found = self._hosts.open(other.host).file_users(list(there), beside)
        except VmferryError as error:
            for file in there.values():
                yield FileUser(file, UserKind.UNKNOWN, f"host {other.host}", f"has the same storage, and: {error}")
            return
        for user in found:
            yield _seen_from_here(user, there[user.file], other, own)


def _seen_from_here(user: FileUser, file: Path, other: StorageView, own: StorageView) -> FileUser:
    """Return another host's user of a file as this host sees it.

    An image there is the same one here, under another name perhaps; a VM there is another host's.
    """
    if user.kind is UserKind.IMAGE and (place := _moved(Path(user.id), other, own)) is not None:
        return replace(user, file=file, id=str(place), through=place, who=f"the image {place}")
    return replace(user, file=file, who=f"{user.who} on {other.host}")


def _moved(path: Path, here: StorageView, there: StorageView) -> Path | None:
    """Return a file's path where the storage lies on another host; None for a file that is not in it."""
    if not path.is_relative_to(here.path):
        return None
    return Path(there.path) / path.relative_to(here.path)


def _named(plan: Plan, host: str) -> set[Where]:
    """Return what a job reads, makes or removes on that host; two libvirts of one machine have the same files."""
    named: set[Where] = set()
    if _same(host, plan.connect):
        named |= {name for source in plan.sources for name in source.names} | {image.source for image in plan.images}
    return named | _made(plan, host)


def _made(plan: Plan, host: str) -> set[Where]:
    """Return what a job makes on that host."""
    if not _same(host, plan.to or plan.connect):
        return set()
    return {image.destination for image in plan.images} | {file.destination for file in plan.files}


def _same(host: str, other: str) -> bool:
    return host == other or (is_local(host) and is_local(other))


def _real(host: Host, file: Path) -> Path:
    entry = host.entry(file)
    return file if entry is None else entry.path
