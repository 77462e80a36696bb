"""Who needs a file: the one place that answers it, asked before anything is removed, renamed or taken over.

libvirt is asked for what VMs name, the headers of images for what lies on what, the kernel for who has it open. Files
are compared by what they are (device and inode), not by their names. What cannot be asked counts as a user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from vmferry.errors import BadXml, ImageToolFailed
from vmferry.hosts.libvirt import domain_xml
from vmferry.hosts.libvirt.file_holders import holders
from vmferry.hosts.libvirt.file_identity import Identities, identity_of
from vmferry.hosts.libvirt.header_cache import HEADERS
from vmferry.hosts.libvirt.headers import BadHeader, Header
from vmferry.hosts.libvirt.image_folders import TooMany, files_beside, files_in
from vmferry.hosts.libvirt.vm_names import Naming, namings
from vmferry.model import FileUser, NamedIn, Placed, Url, UserKind, Where
from vmferry.qemu import img

_OFF = libvirt.VIR_DOMAIN_XML_INACTIVE
_UNSUPPORTED = frozenset({libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED})
_POOLS_OF_FOLDERS = frozenset({"dir", "fs", "netfs"})


def file_users(conn: libvirt.virConnect, files: Sequence[Where], folders: Sequence[Path]) -> list[FileUser]:
    """Return all users of these files that are known here. Raises libvirtError.

    `folders`: where images may lie that no VM names, besides those of libvirt's pools and of the files.
    """
    looking = _Looking(conn, Identities(files))
    looking.at_vms(everything=True)
    images = [file for file in files if isinstance(file, Path) and not file.is_block_device()]
    beside = [file.parent for file in images]
    real = [file.resolve().parent for file in images]
    looking.at_folders([*folders, *beside, *real, *_pools(conn)])
    looking.around([*beside, *real])
    return [*looking.found, *holders(looking.wanted, looking.found)]


def vms_using(conn: libvirt.virConnect, file: Where) -> tuple[str, ...]:
    """Return UUIDs of the VMs that name the file or have images on it, now or from their next start on, by name."""
    looking = _Looking(conn, Identities([file]), guesses=False)
    looking.at_vms(everything=False)
    found = {(user.who, user.id) for user in looking.found if user.kind is UserKind.VM}
    return tuple(uuid for _, uuid in sorted(found))


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the XML documents that libvirt has of a VM, or that a saved state holds."""

    who: str
    kind: UserKind
    id: str
    named_in: NamedIn
    xml: str
    prefix: str = ""


@dataclass
class _Looking:
    conn: libvirt.virConnect
    wanted: Identities
    found: list[FileUser] = field(default_factory=list)
    guesses: bool = True
    """Does a volume count that libvirt cannot find now, by its name alone?"""
    raw: dict[object, bool] = field(default_factory=dict)
    """Of each file that an XML declares: is it raw wherever it is declared? Its header is the guest's own then."""

    looked: set[Path] = field(default_factory=set)

    # -- VMs

    def at_vms(self, *, everything: bool) -> None:
        for domain in self.conn.listAllDomains():
            with _while_there():
                for part in _parts(domain, everything=everything):
                    self._at_part(part)

    def _at_part(self, part: _Part) -> None:
        try:
            root = domain_xml.parse(part.xml)
        except BadXml:
            self._unknown(part.who, f"what it names {part.named_in or 'there'} cannot be read")
            return
        for naming in namings(root, self._resolve):
            for file in self._matching(naming):
                self._add(part, naming, file)
            for file, through in self._below(part, naming):
                self._add(part, naming, file, through)

    def _add(self, part: _Part, naming: Naming, file: Where, through: Path | None = None) -> None:
        how = f"{part.prefix}{naming.how}" + (f", by way of {through}" if through else "")
        user = FileUser(
            file, part.kind, part.who, how, part.id, part.named_in, naming.disk, through, not naming.guessed
        )
        if user not in self.found:
            self.found.append(user)

    def _matching(self, naming: Naming) -> Iterable[Where]:
        if naming.guessed and isinstance(naming.where, Path):
            return self.wanted.named(naming.where.name) if self.guesses else ()
        if naming.folder and isinstance(naming.where, Path):
            return self.wanted.within(naming.where)
        return self.wanted.matching(naming.where)

    def _below(self, part: _Part, naming: Naming) -> Iterator[tuple[Where, Path | None]]:
        """Yield the wanted files below an image, by the headers, and the image that names each.

        A raw image has no header: its first bytes are the guest's.
        """
        if naming.guessed or naming.folder:
            return
        if isinstance(naming.where, Url):
            yield from self._below_url(part, naming)
            return
        self._note_format(naming)
        if naming.format == "raw" or not naming.disk:
            return
        for image, where in self._reached(naming.where, lambda path: self._unreadable(part.who, path)):
            for file in self.wanted.matching(where):
                yield file, image

    def _below_url(self, part: _Part, naming: Naming) -> Iterator[tuple[Where, Path | None]]:
        if naming.format in (None, "raw"):
            return
        try:
            chain = img.chain(Placed(naming.where, naming.format or "raw"))
        except ImageToolFailed:
            self._unknown(part.who, f"its {naming.how}, {naming.where}, does not answer")
            return
        for image in chain[1:]:
            for file in self.wanted.matching(image.path):
                yield file, Path(str(naming.where))

    def _reached(self, top: Path, unreadable: Callable[[Path], None]) -> Iterator[tuple[Path, Where]]:
        """Yield (the image whose header names it, what it names), from an image down to its last."""
        todo, seen = [top], set[object]()
        while todo:
            image = todo.pop(0)  # as the VM names it, before what links lead to
            identity = identity_of(image)
            if identity is None or identity in seen:
                continue
            seen.add(identity)
            header = self._header(image, unreadable)
            for where in header.names:
                yield image, where
                todo += [where] if isinstance(where, Path) else []

    def _header(self, image: Path, unreadable: Callable[[Path], None]) -> Header:
        try:
            return HEADERS.of(image)
        except (OSError, BadHeader):
            unreadable(image)
            return Header()

    def _note_format(self, naming: Naming) -> None:
        if isinstance(naming.where, Path) and naming.disk and naming.format is not None:
            identity = identity_of(naming.where)
            if identity is not None:
                self.raw[identity] = self.raw.get(identity, True) and naming.format == "raw"

    def _resolve(self, pool: str, volume: str) -> Path | None:
        try:
            found = self.conn.storagePoolLookupByName(pool)
        except libvirt.libvirtError:
            return None
        with suppress(libvirt.libvirtError):
            return Path(found.storageVolLookupByName(volume).path())
        folder = _folder_of(found)  # it is not active, or does not list the volume yet
        return None if folder is None else folder / volume

    # -- images that no VM may name

    def at_folders(self, folders: Sequence[Path]) -> None:
        try:
            for path in files_in(folders):
                self._at_file(path, lambda image: self._unreadable("the image", image))
        except TooMany as much:
            self._unknown(str(much.folder), "it holds more files than can be looked at")
        except OSError as error:
            self._unknown(str(error.filename or "a folder"), f"it cannot be read: {error.strerror}")

    def around(self, folders: Sequence[Path]) -> None:
        """Look at images beside the given folders; what is found there counts, what cannot be read does not.

        Otherwise one damaged image in a folder of VMs would keep the files of all others from ever being removed.
        """
        for path in files_beside(folders):
            self._at_file(path, lambda _image: None)

    def _at_file(self, path: Path, unreadable: Callable[[Path], None]) -> None:
        identity = identity_of(path)
        if identity is None or path in self.looked or self.raw.get(identity, False):
            return
        self.looked.add(path)
        header = self._header(path, unreadable)
        who = f"the image {path}"
        for where in header.names:
            for file in self.wanted.matching(where):
                if not self.wanted.is_file(file, identity):
                    self.found.append(FileUser(file, UserKind.IMAGE, who, id=str(path), through=path))
        if header.saved_xml and not _is_xml(header.saved_xml):
            unreadable(path)
        elif header.saved_xml:
            saved = f"the saved memory {path}"
            self._at_part(_Part(saved, UserKind.IMAGE, str(path), NamedIn.NOWHERE, header.saved_xml))

    # -- whoever could not be asked

    def _unreadable(self, who: str, path: Path) -> None:
        self._unknown(f"{who} {path}" if who == "the image" else f"{who}, image {path}", "its header cannot be read")

    def _unknown(self, who: str, how: str) -> None:
        for file in self.wanted.files:
            user = FileUser(file, UserKind.UNKNOWN, who, how)
            if user not in self.found:
                self.found.append(user)


def _is_xml(text: str) -> bool:
    try:
        domain_xml.parse(text)
    except BadXml:
        return False
    return True


# -- what libvirt has of a VM


def _parts(domain: libvirt.virDomain, *, everything: bool) -> Iterator[_Part]:
    who, uuid = f"VM {domain.name()}", domain.UUIDString()

    def part(named_in: NamedIn, xml: str, prefix: str = "") -> _Part:
        return _Part(who, UserKind.VM, uuid, named_in, xml, prefix)

    if domain.isActive():
        yield part(NamedIn.RUNNING, domain.XMLDesc(0))
    if domain.isPersistent():
        yield part(NamedIn.NEXT_START, domain.XMLDesc(_OFF))
    if not everything:
        return
    for snapshot in _listed(domain.listAllSnapshots):
        if xml := _xml_of(snapshot, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT):
            yield part(NamedIn.SNAPSHOT, xml, f"snapshot {snapshot.getName()}, ")
    for checkpoint in _listed(domain.listAllCheckpoints):
        if xml := _xml_of(checkpoint, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT):
            yield part(NamedIn.CHECKPOINT, xml, f"checkpoint {checkpoint.getName()}, ")
    if domain.hasManagedSaveImage():
        yield part(NamedIn.SAVED, _managed_save_xml(domain))


def _listed(ask: Callable[[], Sequence[libvirt.virDomainSnapshot]]) -> Sequence[libvirt.virDomainSnapshot]:
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() in _UNSUPPORTED:
            return ()
        raise


def _xml_of(listed: libvirt.virDomainSnapshot, gone: int) -> str:
    """Return the XML of a snapshot or checkpoint; empty for one that has just been deleted."""
    try:
        return str(listed.getXMLDesc(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() == gone:
            return ""
        raise


def _managed_save_xml(domain: libvirt.virDomain) -> str:
    """Return the XML in the VM's managed save; empty where it cannot be read, which counts as naming everything."""
    try:
        return str(domain.managedSaveGetXMLDesc(0))
    except libvirt.libvirtError:
        return ""


@contextmanager
def _while_there() -> Iterator[None]:
    """Ignore libvirt's error for a VM that is not there: it may go between two calls."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def _pools(conn: libvirt.virConnect) -> list[Path]:
    """Return the folders of active storage pools; none where libvirt has no driver for them, or its daemon is down."""
    try:
        pools = conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    except libvirt.libvirtError:
        if not conn.isAlive():
            raise
        return []  # no driver for them, or its daemon does not run
    return [folder for pool in pools if (folder := _folder_of(pool)) is not None]


def _folder_of(pool: libvirt.virStoragePool) -> Path | None:
    try:
        root = domain_xml.parse(pool.XMLDesc(0))
    except libvirt.libvirtError:
        return None
    path = root.findtext("./target/path")
    return Path(path) if path and root.get("type") in _POOLS_OF_FOLDERS else None
