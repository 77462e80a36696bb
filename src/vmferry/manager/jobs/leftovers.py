"""What jobs left on a host: files and placeholders, which all carry their job's id, and VMs that were lost with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vmferry.errors import PathRefused
from vmferry.hosts.asking import AskUsers, ask_host
from vmferry.hosts.interface import Hosts
from vmferry.manager.store import Row, Store
from vmferry.migration.facts import JobFacts
from vmferry.migration.steps.step import COPY_SUFFIX, inode_of, overlay_beside
from vmferry.model import ACTIVE, FINAL, FencingToken, FileUser, JobState, Leaving, Lost, Plan, Where, listed
from vmferry.model.names import maker_of, overlay_in


class Leftovers:
    """Finds and removes what jobs left in the folders that plans name, and no active job needs."""

    def __init__(self, store: Store, hosts: Hosts, ask: AskUsers = ask_host) -> None:
        self._store = store
        self._hosts = hosts
        self._ask = ask

    def list(self, connect: str, folders: Sequence[Path]) -> Sequence[str]:
        """Return leftovers in words: a path, and who still needs it, or what else it is."""
        active = {row.id for row in self._store.rows(ACTIVE)}
        paths = [path for path in self._tagged(connect, folders) if _job_in(path) not in active]
        ended = {row.id: row for row in self._store.rows(FINAL)}
        needed = self._needed(connect, paths)
        files = []
        for path in paths:
            if path in needed:
                why = f"needed by {listed(needed[path])}"
            else:
                why = self._kept(ended.get(_job_in(path)), connect, path)
            files.append(f"{path}, {why}" if why else str(path))
        return [*files, *map(_placeholder, self._placeholders(connect)), *self._parted(connect)]

    def reap(self, connect: str, folders: Sequence[Path]) -> Sequence[str]:
        """Remove leftovers of ended jobs that this state folder knows. Returns what was removed, in words.

        A job of another state folder may be active. A VM that a lost host had is only listed: by now it may be
        somebody's again. So is a file that somebody needs.
        """
        ended = {row.id: row for row in self._store.rows(FINAL)}
        known = [path for path in self._tagged(connect, folders) if _job_in(path) in ended]
        ours = [path for path in known if not self._kept(ended[_job_in(path)], connect, path)]
        needed = self._needed(connect, ours)
        gone = [path for path in ours if path not in needed]
        for path in gone:
            row = ended[_job_in(path)]
            self._hosts.open(connect, FencingToken(row.id, row.epoch)).remove(path)
        placeholders = list(self._placeholders(connect))
        for row in placeholders:
            self._hosts.open(connect, FencingToken(row.id, row.epoch)).withdraw(row.plan.uuid)
        return [*map(str, gone), *map(_placeholder, placeholders)]

    def _kept(self, row: Row | None, connect: str, path: Path) -> str:
        """Say why an ended job's file is not for this manager to remove, whoever needs it; empty if it may go."""
        if row is None:
            return ""
        facts = JobFacts.of(self._store.facts(row.id))
        if str(path) in (facts.unmerged or ()):
            return f"which holds what VM {row.plan.vm} wrote before it was started without it"
        return "" if self._made(row, facts, connect, path) else "which is somebody's copy of a file of that job"

    def _made(self, row: Row, facts: JobFacts, connect: str, path: Path) -> bool:
        """Tell whether the job itself made a file that has the name of an overlay: not if somebody copied one there."""
        whole = path.with_name(path.name.removesuffix(COPY_SUFFIX))
        found = overlay_in(whole.name)
        if found is None:
            return True
        here, there = connect == row.plan.connect, connect == (row.plan.to or row.plan.connect)
        overlays = {overlay_beside(disk.overlays, found) for disk in row.plan.disks if here}
        copies = {overlay_beside(disk.overlay_copies, found) for disk in row.plan.disks if there}
        if whole in overlays or (whole in copies and whole != path):
            return True
        return whole in copies and inode_of(self._hosts.open(connect), path) == facts.brought[path]

    def _tagged(self, connect: str, folders: Sequence[Path]) -> Sequence[Path]:
        places = set(folders)
        for row in self._store.rows():
            places |= _folders(row.plan, connect)
        host = self._hosts.open(connect)
        try:
            return host.leftovers(sorted(places))
        except PathRefused:  # one of them is in no storage of that host any more
            return [path for folder in sorted(places) for path in self._in(connect, folder)]

    def _needed(self, connect: str, paths: Sequence[Path]) -> Mapping[Where, Sequence[FileUser]]:
        """Return those of the paths that have users other than these paths themselves, with the users."""
        if not paths:
            return {}
        users = self._ask(self._hosts.open(connect), paths, ())
        return Leaving("", frozenset(), frozenset(paths), moved=True).others_in_turn(users)

    def _in(self, connect: str, folder: Path) -> Sequence[Path]:
        with suppress(PathRefused):
            return self._hosts.open(connect).leftovers([folder])
        return ()

    def _placeholders(self, connect: str) -> Iterator[Row]:
        """Yield ended relocations whose placeholder still stands on that host."""
        for row, _ in self._known_there(connect):
            if self._hosts.open(connect, FencingToken(row.id, row.epoch)).announced(row.plan.uuid):
                yield row

    def _parted(self, connect: str) -> Iterator[str]:
        """Yield, in words, VMs that were taken over from this host when it was lost, and that it still has."""
        for row, newest in self._known_there(connect):
            if not newest or connect != _lost(row, self._store):
                continue
            if not self._hosts.open(connect, FencingToken(row.id, row.epoch)).announced(row.plan.uuid):
                yield f"VM {row.plan.vm}: never start it here, job {row.id} went on without this host"

    def _known_there(self, connect: str) -> Iterator[tuple[Row, bool]]:
        """Yield ended relocations whose VM the host knows, and whether each is that VM's newest job."""
        rows = self._store.rows()
        mine = [row for row in rows if row.plan.to and row.state in FINAL and connect in (row.connect, row.plan.to)]
        if not mine:
            return
        there = {vm.uuid for vm in self._hosts.open(connect).vms()}
        newest = {row.plan.uuid: row.id for row in reversed(rows) if row.state is not JobState.FAILED}
        for row in mine:
            if row.plan.uuid in there:
                yield row, newest.get(row.plan.uuid) == row.id


def _lost(row: Row, store: Store) -> str:
    said = JobFacts.of(store.facts(row.id)).lost
    if said == Lost.SOURCE:
        return row.connect
    return row.plan.to or "" if said == Lost.DESTINATION else ""


def _placeholder(row: Row) -> str:
    return f"placeholder of VM {row.plan.vm} (vmferry-{row.id})"


def _folders(plan: Plan, connect: str) -> set[Path]:
    """Return the folders in which a job of this plan makes files on that host."""
    folders: set[Path] = set()
    if connect == plan.connect:
        files = [image.source for image in plan.images if not image.from_volume]
        folders |= {path.parent for path in files if isinstance(path, Path)}
        folders |= {disk.overlays.parent for disk in plan.disks}
    if connect == (plan.to or plan.connect):
        files = [image.destination for image in plan.images if not image.to_volume]
        folders |= {path.parent for path in files if isinstance(path, Path)}
        folders |= {disk.overlay_copies.parent for disk in plan.disks}
        folders |= {file.destination.parent for file in plan.files}
    return folders


def _job_in(path: Path) -> str:
    return maker_of(path.name) or ""
