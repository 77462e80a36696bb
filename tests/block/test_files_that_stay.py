"""Random chains, random users, random ways to name a file: nothing that anybody names is ever removed.

The files are real, with headers of qcow2 written here; libvirt's test driver keeps the VMs. What is taken away is what
preflight decides, and the truth is worked out from what was made, not from what is read.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import libvirt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.sampling import fewer

from vmferry.hosts.asking import ask_host
from vmferry.hosts.interface import Host
from vmferry.hosts.libvirt import file_users, files
from vmferry.model import (
    Disk,
    DiskMove,
    Fate,
    FileEntry,
    FileUser,
    Image,
    MoveRequest,
    Power,
    SourceFileFate,
    Vm,
    Where,
)
from vmferry.preflight.moves import Wanted, disk_move
from vmferry.preflight.source_fate import Move, judge

DISK = "<disk type='file'><driver name='qemu' type='{0}'/><source file='{1}'/><target dev='{2}' bus='virtio'/></disk>"
XML = """<domain type='test'><name>{0}</name><memory>1024</memory><os><type>hvm</type>{1}</os><devices>{2}</devices>
</domain>"""
POOL = "<pool type='dir'><name>{0}</name><target><path>{1}</path></target></pool>"
VOLUME = "<volume><name>{0}</name><capacity>1024</capacity><target><format type='qcow2'/></target></volume>"

PLACES = ("same", "below", "above", "beside")
FOLDERS = ("left", "left/within", "templates", "elsewhere")
WAYS = ("absolute", "relative", "dotted", "file:", "json", "flat json", "symlink", "linked folder", "hard link")
KINDS = (
    "image",
    "image on an image",
    "vm",
    "vm on an image",
    "raw vm",
    "kernel",
    "snapshot",
    "own other disk",
    "volume",
)


@dataclass(frozen=True)
class Named:
    """Somebody who needs one of the chain's images."""

    number: int
    """Of the image, the active one first."""
    kind: str
    way: str
    place: str
    """Of an image that no VM names, from where the other one lies: it must be where somebody looks."""


@dataclass(frozen=True)
class Case:
    folders: tuple[str, ...]
    """Of the chain's images, the active one first."""
    users: tuple[Named, ...]
    remove_bases: bool
    keep_source: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    folders = draw(st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=4))
    named = st.builds(
        Named,
        st.integers(0, len(folders) - 1),
        st.sampled_from(KINDS),
        st.sampled_from(WAYS),
        st.sampled_from(PLACES),
    )
    users = draw(st.lists(named, max_size=3))
    return Case(tuple(folders), tuple(users), draw(st.booleans()), draw(st.booleans()))


def qcow2(path: Path, backing: str = "") -> Path:
    """As much of one as a reader of headers looks at."""
    name = backing.encode()
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 72 if name else 0, len(name), 16, 1 << 20, 0, 0, 0, 0, 0, 0, 0)
    path.write_bytes(head + name)
    return path


def name_of(target: Path, way: str, of: Path, ground: Path) -> str:
    """How a file in that place may name another one."""
    match way:
        case "relative":
            return os.path.relpath(target, of.parent)
        case "dotted":
            return f"{target.parent}/./../{target.parent.name}/{target.name}"
        case "file:":
            return f"file:{target}"
        case "json":
            return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": str(target)}})
        case "flat json":
            return "json:" + json.dumps({"driver": "qcow2", "file.driver": "file", "file.filename": str(target)})
    return str(path_of(target, way, ground))


def path_of(target: Path, way: str, ground: Path) -> Path:
    """The same file by another path, where that way makes one."""
    aside = ground / "aside"
    aside.mkdir(exist_ok=True)
    other = aside / f"{len(list(aside.iterdir()))}"
    match way:
        case "symlink":
            other.symlink_to(target)
            return other
        case "linked folder":
            other.symlink_to(target.parent)
            return other / target.name
        case "hard link":
            other.hardlink_to(target)
            return other
    return target


def _beside(target: Path, place: str) -> Path:
    here, above = target.parent, target.parent.parent
    folder = {"same": here, "below": here / "b" / "c", "above": above, "beside": above / "beside"}[place]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Ground:
    """The files and VMs of one case."""

    def __init__(self, at: Path, conn: libvirt.virConnect, case: Case) -> None:
        self.at, self.conn, self.case = at, conn, case
        for folder in FOLDERS:
            (at / folder).mkdir(parents=True, exist_ok=True)
        self.domains: list[libvirt.virDomain] = []
        self.pools: list[libvirt.virStoragePool] = []
        self.needed: list[Path] = []
        """What must be there in the end, by the name that its user has for it."""
        self.chain = self._chain()
        self.own_disks: list[Path] = []

    def make(self) -> None:
        for number, user in enumerate(self.case.users):
            self._make(user, f"user{number}")

    def _chain(self) -> list[Path]:
        paths = [self.at / folder / f"own{n}.qcow2" for n, folder in enumerate(self.case.folders)]
        for path, below in zip(paths, [*paths[1:], None], strict=True):
            qcow2(path, "" if below is None else str(below))
        return paths

    def _make(self, user: Named, name: str) -> None:
        target = self.chain[user.number]
        self.needed += self.chain[user.number :]  # and all that it lies on
        own = _beside(target, user.place) / f"{name}.qcow2"
        match user.kind:
            case "image":
                qcow2(own, name_of(target, user.way, own, self.at))
            case "image on an image":
                between = qcow2(own.with_name(f"{name}-between.qcow2"), name_of(target, user.way, own, self.at))
                qcow2(own, between.name)
            case "own other disk":
                self.own_disks.append(self._away(name, target, user.way))
            case "snapshot":
                self._with_snapshot(name, self._away(name, target, user.way))
            case "volume":
                self._with_volume(name, self._away(name, target, user.way))
            case "kernel":
                self._define(name, DISK.format("raw", self.at / "none", "vda"), f"<kernel>{self._path(user)}</kernel>")
            case "vm on an image":
                self._define(name, DISK.format("qcow2", self._away(name, target, user.way), "vda"))
            case kind:
                self._define(name, DISK.format("raw" if kind == "raw vm" else "qcow2", self._path(user), "vda"))

    def _path(self, user: Named) -> Path:
        named = path_of(self.chain[user.number], user.way, self.at)
        self.needed.append(named)
        return named

    def _away(self, name: str, target: Path, way: str) -> Path:
        """An overlay where nobody looks for images: only a VM knows of it."""
        away = self.at / "far" / name
        away.mkdir(parents=True)
        return qcow2(away / "overlay.qcow2", name_of(target, way, away / "x", self.at))

    def _define(self, name: str, disks: str, os_: str = "") -> libvirt.virDomain:
        self.domains.append(self.conn.defineXML(XML.format(name, os_, disks)))
        return self.domains[-1]

    def _with_snapshot(self, name: str, overlay: Path) -> None:
        domain = self._define(name, DISK.format("qcow2", overlay, "vda"))
        domain.snapshotCreateXML("<domainsnapshot><name>then</name></domainsnapshot>", 0)
        xml = XML.format(name, "", DISK.format("raw", self.at / "none", "vda"))
        self.conn.defineXML(xml.replace("<memory>", f"<uuid>{domain.UUIDString()}</uuid><memory>"))

    def _with_volume(self, name: str, overlay: Path) -> None:
        pool = self.conn.storagePoolDefineXML(POOL.format(name, overlay.parent))
        self.pools.append(pool)
        pool.create()
        pool.createXML(VOLUME.format(overlay.name))
        disk = DISK.format("qcow2", "", "vda").replace("type='file'", "type='volume'")
        self._define(name, disk.replace("file=''", f"pool='{name}' volume='{overlay.name}'"))

    def own(self) -> Vm:
        """The VM that moves, with what of its disks stays."""
        disks = DISK.format("qcow2", self.chain[0], "vda")
        disks += "".join(DISK.format("qcow2", p, f"vd{t}") for t, p in zip("bcd", self.own_disks, strict=False))
        domain = self._define("own", disks)
        below = [*self.chain[1:], None]
        images = tuple(
            Image(path, "qcow2", 1 << 20, 1 << 16, str(on) if on else None, "qcow2" if on else None)
            for path, on in zip(self.chain, below, strict=True)
        )
        return Vm("own", domain.UUIDString(), Power.OFF, True, 1 << 20, (Disk("vda", images),))

    def forget(self) -> None:
        for domain in self.domains:
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        for pool in self.pools:
            pool.destroy()
            pool.undefine()


class Files:
    """As much of a host as is asked."""

    name = "here"

    def __init__(self, conn: libvirt.virConnect) -> None:
        self._conn = conn

    def entry(self, path: Path) -> FileEntry | None:
        return files.entry(path)

    def file_users(self, asked: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        return file_users.file_users(self._conn, asked, folders)


@pytest.fixture(scope="module")
def conn() -> Iterator[libvirt.virConnect]:
    made = libvirt.open("test:///default")
    yield made
    made.close()


def decided(ground: Ground, conn: libvirt.virConnect, case: Case) -> Sequence[SourceFileFate]:
    vm = ground.own()
    to = ground.at / "to"
    to.mkdir()
    moves: Sequence[DiskMove] = [disk_move(vm, Wanted(vm.disks[0], to))]
    request = MoveRequest("own", "here", path=to, remove_bases=case.remove_bases, keep_source=case.keep_source)
    host = cast(Host, Files(conn))
    return judge(Move(vm, moves, (), frozenset(), request), host, ask_host, apart=False).sources


@settings(max_examples=fewer(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
@example(Case(("left/within", "left"), (Named(0, "image", "absolute", "below"),), False, False))
@example(Case(("left", "left/within"), (Named(1, "image", "absolute", "below"),), True, False))
def test_nothing_that_anybody_names_is_ever_removed(conn: libvirt.virConnect, case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder), conn, case)
        try:
            ground.make()
            sources = decided(ground, conn, case)
        finally:
            ground.forget()
        for source in sources:
            if source.goes:
                (source.data or Path(str(source.path))).unlink()
        gone = [path for path in ground.needed if not path.exists()]
        assert not gone, (gone, sources)
        assert {source.path for source in sources} == set(ground.chain)
        assert all(source.why for source in sources)


@settings(max_examples=fewer(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases().map(lambda case: Case(case.folders, (), case.remove_bases, case.keep_source)))
def test_what_nobody_else_names_goes_and_a_base_of_another_folder_only_when_that_is_asked_for(
    conn: libvirt.virConnect, case: Case
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder), conn, case)
        try:
            ground.make()
            sources = {source.path: source for source in decided(ground, conn, case)}
        finally:
            ground.forget()
    for number, path in reversed(list(enumerate(ground.chain))):
        beside = case.folders[number] == case.folders[0]
        stays = number > 0 and not (case.remove_bases or beside)
        goes = Fate.RENAMED if case.keep_source else Fate.REMOVED
        assert sources[path].fate is (Fate.STAYS if stays or _held(case, number) else goes), (number, sources)


def _held(case: Case, number: int) -> bool:
    """By an image above it that stays."""
    above = case.folders[1:number] if not case.remove_bases else ()
    return any(folder != case.folders[0] for folder in above)
