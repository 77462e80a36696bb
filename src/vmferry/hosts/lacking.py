"""What of a host's own, disks and networks aside, a definition names: each is looked for before the VM goes there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vmferry.hosts import domain_xml, written
from vmferry.hosts.domain_xml import Element
from vmferry.model import Changes, Definition, Lack, WrittenSnapshot

_COPY = "copy it there under the same name"
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
_PCI, _MDEV = Path("/sys/bus/pci/devices"), Path("/sys/bus/mdev/devices")
_OURS = Path("/var/lib/libvirt/qemu")
"""libvirt makes what it names there itself."""


def lacks(definition: Definition, changes: Changes) -> Sequence[Lack]:
    root = domain_xml.parse(written.text(definition, changes))
    brought = set(changes.files.values())
    found = [*_files(root), *_nvram(root, brought), *_characters(root), *_shared(root), *_devices(root)]
    for snapshot in definition.snapshots:
        found += _snapshot(snapshot, changes.files)
    return list(dict.fromkeys(found))


def _lack(what: str, path: Path, cure: str, there: Callable[[Path], bool] = Path.exists) -> Iterator[Lack]:
    if path != Path("/") and not path.is_relative_to(_OURS) and not there(path):
        yield Lack(f"{what} {path}", cure)


def _files(root: Element) -> Iterator[Lack]:
    for at, what in _FILES:
        for element in root.iterfind(at):
            yield from _lack(what, Path("/", (element.text or "").strip()), _COPY)


def _nvram(root: Element, brought: Collection[Path]) -> Iterator[Lack]:
    """Its template is needed only where no file of variables comes along."""
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
    """One for both ways, or one for each."""
    return path.exists() or all(path.with_name(f"{path.name}{end}").exists() for end in (".in", ".out"))


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
    """Memory of its own, and images that no disk of the VM stands on any more: another branch of the tree."""
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
