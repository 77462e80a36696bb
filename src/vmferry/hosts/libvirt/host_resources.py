"""Files, sockets and devices of its host that a definition names: each is looked for before the VM goes there.

Networks, discs, and the disks that come along, are looked for elsewhere.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vmferry import durable
from vmferry.hosts.libvirt import definition as written
from vmferry.hosts.libvirt import domain_xml
from vmferry.hosts.libvirt.domain_xml import Element
from vmferry.model import Changes, Definition, Lack, WrittenSnapshot

_COPY = "copy it there under the same name"
_DETACH = "detach it, or copy it there under the same name"
_DISCS = ("cdrom", "floppy")
_FOLDER = "make its folder there"
_SERVER = "start what listens on it there"
_DEVICE = "take it out of the VM first, and give it one of that host afterwards"
_FILES = (
    ("./os/kernel", "the kernel"),
    ("./os/initrd", "the initrd"),
    ("./os/dtb", "the device tree"),
    ("./os/loader", "the firmware"),
    ("./os/acpi/table", "the ACPI table"),
    ("./devices/emulator", "the emulator"),
)
_CHARACTER = ("serial", "parallel", "console", "channel", "redirdev", "smartcard", "rng/backend", "vsock")
_PORT = "let libvirt choose: autoport='yes' in the VM's <graphics> (`virsh edit`), or free it there"
_HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
_PCI, _MDEV = Path("/sys/bus/pci/devices"), Path("/sys/bus/mdev/devices")
_OURS = (Path("/var/lib/libvirt/qemu"), Path("/run/libvirt/qemu"))
"""Folders in which libvirt itself makes what it names."""


def lacks(definition: Definition, changes: Changes) -> Sequence[Lack]:
    root = domain_xml.parse(written.text(definition, changes))
    found = [*own(root), *_nvram(root, set(changes.files.values()))]
    if changes.disks:  # these come along
        found += _disks(root, changes.disks)
    if not changes.cold:  # what only a start needs, and is there when it comes
        found += [*_huge_pages(root), *_ports(root)]
    for snapshot in definition.snapshots:
        found += _snapshot(snapshot, changes.files)
    return list(dict.fromkeys(found))


def own(root: Element) -> Iterator[Lack]:
    """Yield what a domain's XML names of its host and is not here: files, sockets and devices.

    Disks and the firmware's variables are left aside.
    """
    yield from _files(root)
    yield from _characters(root)
    yield from _shared(root)
    yield from _devices(root)


def _lack(what: str, path: Path, cure: str, is_there: Callable[[Path], bool] | None = None) -> Iterator[Lack]:
    if path != Path("/") and not any(path.is_relative_to(ours) for ours in _OURS) and not (is_there or there)(path):
        yield Lack(f"{what} {path}", cure)


def _huge_pages(root: Element) -> Iterator[Lack]:
    """Yield a lack of huge pages for all of the guest's memory, of the size that it names or the host's default."""
    asked = root.find("./memoryBacking/hugepages")
    if asked is None:
        return
    page = asked.find("page")
    size_kib = _kib(page, "size") if page is not None else _default_page_kib()
    needed = -(-_kib(root.find("./memory"), None) // size_kib)
    try:
        free = int((_HUGE_PAGES / f"hugepages-{size_kib}kB" / "free_hugepages").read_text())
    except (OSError, ValueError):
        free = 0
    if free < needed:
        cure = f"reserve {needed - free} more: /sys/kernel/mm/hugepages/hugepages-{size_kib}kB/nr_hugepages"
        yield Lack(f"{needed} free huge pages of {size_kib} KiB (there are {free})", cure)


def _kib(element: Element | None, attribute: str | None) -> int:
    """Return a size in KiB, which is libvirt's unit where it names none."""
    if element is None:
        return 0
    units = {"b": 1 / 1024, "bytes": 1 / 1024, "": 1, "k": 1, "kib": 1, "m": 1024, "mib": 1024, "g": 1 << 20}
    number = element.text if attribute is None else element.get(attribute)
    return round(int((number or "0").strip()) * units.get(element.get("unit", "").lower(), 1 << 20))


def _default_page_kib() -> int:
    found = re.search(r"Hugepagesize:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) if found else 2048


def _ports(root: Element) -> Iterator[Lack]:
    """Yield screens' ports that the definition names by number and are taken; libvirt finds free ones for others."""
    for graphics in root.iterfind("./devices/graphics[@port]"):
        port = int(graphics.get("port", "-1"))
        if port <= 0 or graphics.get("autoport") == "yes":
            continue
        listen = graphics.find("listen[@address]")
        address = graphics.get("listen") or (listen.get("address") if listen is not None else None) or "127.0.0.1"
        if trouble := _taken(address, port):
            kind = graphics.get("type", "vnc")
            yield Lack(f"the {kind} screen's address {address} port {port} ({trouble})", _PORT)


def _taken(address: str, port: int) -> str:
    """Return why nothing could listen at this address and port; empty when it could, or that is for libvirt to tell."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                return ""  # QEMU's user may, or may not: libvirt tells
            return "in use" if error.errno == errno.EADDRINUSE else "not an address of that host"
    return ""


def there(path: Path) -> bool:
    """Is there something at this path, as far as this process may look? What cannot be told is no lack."""
    try:
        return durable.there(path)
    except PermissionError:
        return True


def _files(root: Element) -> Iterator[Lack]:
    for at, what in _FILES:
        for element in root.iterfind(at):
            yield from _lack(what, Path("/", (element.text or "").strip()), _COPY)


def _disks(root: Element, brought: Collection[str]) -> Iterator[Lack]:
    """Yield the files of disks that do not come along: one that was attached since the move was planned, for one."""
    for disk in domain_xml.disks(root):
        where, target = domain_xml.source_where(disk), domain_xml.target_of(disk)
        if disk.get("device", "disk") in _DISCS or not isinstance(where, Path) or target in brought:
            continue
        yield from _lack(f"disk {target}", where, _DETACH)


def _nvram(root: Element, brought: Collection[Path]) -> Iterator[Lack]:
    """Yield the firmware variables' template if it is missing; needed only where no file of variables comes along."""
    for element in root.iterfind("./os/nvram[@template]"):
        source = element.find("source")
        name = (element.text or "") if source is None else source.get("file", "")
        if Path("/", name.strip()) in brought:
            continue
        yield from _lack("the template of the firmware's variables", Path("/", element.get("template", "")), _COPY)


def _characters(root: Element) -> Iterator[Lack]:
    for name in _CHARACTER:
        for device in root.iterfind(f"./devices/{name}"):
            what = name.partition("/")[0]
            for log in device.iterfind("log[@file]"):
                yield from _within(f"the folder of the {what}'s log", Path(log.get("file", "")))
            for source in device.iterfind("source[@path]"):
                yield from _character(what, device.get("type", ""), source)
            if device.get("model") == "random":
                yield from _lack("the source of random numbers", Path("/", (device.text or "").strip()), _COPY)


def _character(what: str, kind: str, source: Element) -> Iterator[Lack]:
    path = Path("/", source.get("path", ""))
    if kind == "file" or (kind == "unix" and source.get("mode") == "bind"):
        yield from _within(f"the folder of the {what}'s {'log' if kind == 'file' else 'socket'}", path)
    elif kind == "unix":
        yield from _lack(f"the {what}'s socket", path, _SERVER)
    elif kind == "pipe":
        yield from _lack(f"the {what}'s pipe", path, "make it there: mkfifo", _is_pipe)
    elif kind == "dev":
        yield from _lack(f"the {what}'s device", path, _DEVICE)


def _is_pipe(path: Path) -> bool:
    """Is there a named pipe for both ways, or one for each (.in and .out)?"""
    return there(path) or all(there(path.with_name(f"{path.name}{end}")) for end in (".in", ".out"))


def _within(what: str, path: Path) -> Iterator[Lack]:
    yield from _lack(what, path.parent, _FOLDER)


def _shared(root: Element) -> Iterator[Lack]:
    for source in root.iterfind("./devices/filesystem/source"):
        folder = source.get("dir") or source.get("file") or source.get("dev") or source.get("socket")
        if folder:
            yield from _lack("the shared folder", Path(folder), "mount or make it there")
    for source in root.iterfind("./devices/interface[@type='vhostuser']/source[@type='unix']"):
        if source.get("mode") == "client":
            yield from _lack("the vhost-user socket", Path(source.get("path", "")), _SERVER)
        else:
            yield from _within("the folder of the vhost-user socket", Path(source.get("path", "")))
    for element in root.iterfind("./devices/memory/source/path"):
        yield from _lack("the memory device's file", Path("/", (element.text or "").strip()), _COPY)


def _snapshot(snapshot: WrittenSnapshot, brought: Mapping[Path, Path]) -> Iterator[Lack]:
    """Yield the files that a snapshot needs and that are not here.

    These are memory of its own, and images that no disk of the VM stands on any more: another branch of the tree.
    """
    root = domain_xml.parse(snapshot.xml)
    named = [memory.get("file", "") for memory in root.iterfind("./memory[@file]")]
    named += [source.get("file", "") for source in root.iterfind("./disks/disk/source[@file]")]
    disks = [disk for disk in root.iterfind("./domain/devices/disk") if disk.get("device", "disk") == "disk"]
    named += [source.get("file", "") for disk in disks for source in disk.iterfind("source[@file]")]
    for path in map(Path, named):
        if path not in brought:
            cure = (
                f"copy it there under the same name, or remove the snapshot: `virsh snapshot-delete VM {snapshot.name}`"
            )
            yield from _lack(f"snapshot {snapshot.name}'s file", path, cure)


def _devices(root: Element) -> Iterator[Lack]:
    for address in root.iterfind("./devices/hostdev[@type='pci']/source/address"):
        yield from _lack("the PCI device", _PCI / _pci(address), _DEVICE)
    for address in root.iterfind("./devices/interface[@type='hostdev']/source/address[@type='pci']"):
        yield from _lack("the PCI device", _PCI / _pci(address), _DEVICE)
    for address in root.iterfind("./devices/hostdev[@type='mdev']/source/address"):
        yield from _lack("the mediated device", _MDEV / address.get("uuid", ""), _DEVICE)
    for device in root.iterfind("./devices/tpm/backend[@type='passthrough']/device"):
        yield from _lack("the host's TPM", Path(device.get("path", "")), _DEVICE)
    for source in root.iterfind("./devices/input/source"):
        yield from _lack("the input device", Path("/", source.get("evdev") or source.get("dev") or ""), _DEVICE)
    for gl in root.iterfind("./devices/graphics/gl[@rendernode]"):
        yield from _lack("the render node", Path(gl.get("rendernode", "")), _DEVICE)


def _pci(address: Element) -> str:
    parts = [int(address.get(name, "0"), 16) for name in ("domain", "bus", "slot", "function")]
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*parts)
