"""Small VMs without an operating system, and all the ways in which somebody may need a file of theirs.

QEMU is started standing: it opens all that the VM names, which is what is asked of it here, and needs no kernel.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
from lxml import etree
from lxml.builder import E  # type: ignore[import-not-found]  # lxml-stubs has none for it
from tests.support.seen import run

from vmferry.lab import LabHost, wait_for
from vmferry.lab.guests.domain import OVMF_CODE, OVMF_VARS

MIB = 8
FAR = "far/away"
"""Below a test's place: a folder that is not beside the base's, so that nobody reads the headers in it."""
STANDING = libvirt.VIR_DOMAIN_START_PAUSED
FORGET = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)


def image(path: Path, on: Path | None = None, *, named: str | None = None) -> Path:
    """A qcow2; `named`: how its header names what it lies on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if on is None:
        run("qemu-img", "create", "-q", "-f", "qcow2", str(path), f"{MIB}M")
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", named or str(on), str(path), f"{MIB}M")
    return path


def written(path: Path) -> Path:
    """A qcow2 with something in it."""
    image(path)
    run("qemu-io", "-c", "write -P 7 0 1M", str(path))
    return path


def file_disk(path: Path, target: str = "vda", format_: str = "qcow2", **attributes: str) -> etree._Element:
    disk: etree._Element = E.disk(
        E.driver(name="qemu", type=format_),
        E.source(file=str(path)),
        E.target(dev=target, bus="virtio"),
        **({"type": "file", "device": "disk"} | attributes),
    )
    return disk


def volume_disk(pool: str, volume: str) -> etree._Element:
    disk: etree._Element = E.disk(
        E.driver(name="qemu", type="qcow2"),
        E.source(pool=pool, volume=volume),
        E.target(dev="vda", bus="virtio"),
        type="volume",
        device="disk",
    )
    return disk


def xml_of(name: str, *disks: etree._Element, nvram: Path | None = None) -> str:
    os_ = E.os(E.type("hvm", arch="x86_64", machine="q35"))
    if nvram is not None:
        os_.append(E.loader(OVMF_CODE, readonly="yes", type="pflash"))
        os_.append(E.nvram(str(nvram)))
    parts = [E.name(name), E.memory("32", unit="MiB"), os_, E.features(E.acpi()), E.devices(*disks)]
    domain = E.domain(*parts, type="qemu")
    return etree.tostring(domain, encoding="unicode")


@dataclass
class Yard:
    """Folders and VMs of one test, which end with it."""

    lab: LabHost
    connection: libvirt.virConnect
    name: str
    made: list[str] = field(default_factory=list)
    ends: ExitStack = field(default_factory=ExitStack)

    def folder(self, name: str, storage: str = "san1") -> Path:
        place = self.lab.storage(storage) / self.name / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def define(self, name: str, *disks: etree._Element, nvram: Path | None = None) -> libvirt.virDomain:
        full = f"{self.name} {name}"
        self.made.append(full)
        return self.connection.defineXML(xml_of(full, *disks, nvram=nvram))

    def start_transient(self, name: str, *disks: etree._Element) -> libvirt.virDomain:
        full = f"{self.name} {name}"
        self.made.append(full)
        return self.connection.createXML(xml_of(full, *disks), STANDING)

    def pool(self, folder: Path) -> str:
        """A dir pool over a folder."""
        made = E.pool(E.name(self.name), E.target(E.path(str(folder))), type="dir")
        pool = self.connection.storagePoolDefineXML(etree.tostring(made, encoding="unicode"))
        pool.create()
        self.ends.callback(pool.undefine)
        self.ends.callback(pool.destroy)
        pool.refresh()
        return self.name

    def end(self) -> None:
        for domain in self.connection.listAllDomains():
            if domain.name() in self.made:
                with suppress(libvirt.libvirtError):
                    domain.destroy()
                with suppress(libvirt.libvirtError):
                    domain.undefineFlags(FORGET)
        self.ends.close()
        for storage in self.lab.storages:
            run("rm", "-rf", str(self.lab.storage(storage) / self.name))


@contextmanager
def yard(lab: LabHost, connection: libvirt.virConnect, name: str) -> Iterator[Yard]:
    made = Yard(lab, connection, name)
    try:
        yield made
    finally:
        made.end()


def can_start(domain: libvirt.virDomain) -> None:
    """QEMU opens all that the VM names."""
    if not domain.isActive():
        domain.createWithFlags(STANDING)


def firmware(path: Path) -> Path:
    path.write_bytes(Path(OVMF_VARS).read_bytes())
    return path


# -- who may need a base, and the proof that it still serves


def _volume(yard: Yard, base: Path) -> Callable[[], None]:
    """A sibling's overlay, named by pool and volume."""
    clone = image(yard.folder(FAR) / "clone.qcow2", base)
    domain = yard.define("b", volume_disk(yard.pool(clone.parent), clone.name))
    return lambda: can_start(domain)


def _transient(yard: Yard, base: Path) -> Callable[[], None]:
    """A VM that nobody has defined, which runs."""
    clone = image(yard.folder(FAR) / "clone.qcow2", base)
    domain = yard.start_transient("b", file_disk(clone))
    return lambda: _asserted(domain.isActive() and base.exists())


def _next_start(yard: Yard, base: Path) -> Callable[[], None]:
    """It runs on another disk; what it starts from next was changed meanwhile."""
    other, clone = image(yard.folder(FAR) / "other.qcow2"), image(yard.folder(FAR) / "c.qcow2", base)
    domain = yard.define("b", file_disk(other))
    can_start(domain)
    yard.connection.defineXML(_with_uuid(domain, xml_of(domain.name(), file_disk(clone))))

    def starts() -> None:
        domain.destroy()
        can_start(domain)

    return starts


def _with_uuid(domain: libvirt.virDomain, xml: str) -> str:
    root = etree.fromstring(xml)
    root.insert(0, E.uuid(domain.UUIDString()))
    return etree.tostring(root, encoding="unicode")


def _snapshot(yard: Yard, base: Path) -> Callable[[], None]:
    """A snapshot of another VM that went back to a disk of its own: libvirt alone knows that the base is in it."""
    clone = image(yard.folder(FAR) / "clone.qcow2", base)
    domain = yard.define("b", file_disk(clone))
    domain.snapshotCreateXML(
        f"<domainsnapshot><name>then</name><disks><disk name='vda' snapshot='external'>"
        f"<source file='{clone.with_name('after.qcow2')}'/></disk></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
    )
    fresh = image(clone.with_name("fresh.qcow2"))
    yard.connection.defineXML(_with_uuid(domain, xml_of(domain.name(), file_disk(fresh))))
    return lambda: _reads(clone)


def _managed_save(yard: Yard, base: Path) -> Callable[[], None]:
    """Memory that libvirt keeps names the disks that it was on, whatever the definition says since."""
    clone = image(yard.folder(FAR) / "clone.qcow2", base)
    domain = yard.define("b", file_disk(clone))
    can_start(domain)
    domain.managedSave(libvirt.VIR_DOMAIN_SAVE_PAUSED)
    fresh = image(clone.with_name("fresh.qcow2"))
    yard.connection.defineXML(_with_uuid(domain, xml_of(domain.name(), file_disk(fresh))))
    return lambda: can_start(domain)


def _saved(yard: Yard, base: Path) -> Callable[[], None]:
    """`virsh save` of a VM that was transient, beside the base: nothing else knows of it."""
    clone = image(yard.folder(FAR) / "clone.qcow2", base)
    domain = yard.start_transient("b", file_disk(clone))
    state = base.with_name("b.save")
    domain.save(str(state))

    def restores() -> None:
        yard.connection.restoreFlags(str(state), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        _asserted(domain.name() in {d.name() for d in yard.connection.listAllDomains()})

    return restores


def _json(yard: Yard, base: Path) -> Callable[[], None]:
    """An overlay that no VM names, which names the base by QEMU's options."""
    told = {"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}}
    clone = image(base.with_name("clone.qcow2"), base, named=f"json:{json.dumps(told)}")
    return lambda: _reads(clone)


def _relative(yard: Yard, base: Path) -> Callable[[], None]:
    """Two overlays that no VM names, one on the other, by names relative to their folder."""
    middle = image(base.with_name("middle.qcow2"), base, named=base.name)
    clone = image(base.with_name("clone.qcow2"), middle, named=f"./{middle.name}")
    return lambda: _reads(clone)


def _symlink(yard: Yard, base: Path) -> Callable[[], None]:
    """Another VM knows the base by a link of another folder."""
    link = yard.folder(FAR) / "golden.qcow2"
    link.symlink_to(base)
    domain = yard.define("b", file_disk(image(link.with_name("clone.qcow2"), link)))
    return lambda: can_start(domain)


def _hard_link(yard: Yard, base: Path) -> Callable[[], None]:
    """An overlay names it by another name of the same file, in the same folder."""
    other = base.with_name("golden.qcow2")
    other.hardlink_to(base)
    domain = yard.define("b", file_disk(image(yard.folder(FAR) / "clone.qcow2", other)))
    return lambda: can_start(domain)


def _exported(yard: Yard, base: Path) -> Callable[[], None]:
    """Somebody serves it over NBD, read-only."""
    socket = yard.folder(FAR) / "nbd.sock"
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", str(socket), "-f", "qcow2", str(base)])

    def stop() -> None:
        server.terminate()
        server.wait()

    yard.ends.callback(stop)
    wait_for(socket.exists, "qemu-nbd", 20)
    return lambda: _asserted(server.poll() is None and base.exists())


def _template_drive(yard: Yard, base: Path) -> Callable[[], None]:
    """It is in another VM's drive, as a raw disc: nothing reads its header."""
    disc = file_disk(base, "sda", "raw", device="cdrom")
    disc.find("target").set("bus", "sata")  # type: ignore[union-attr]
    domain = yard.define("b", disc)
    return lambda: can_start(domain)


def _asserted(held: object) -> None:
    assert held


def _reads(path: Path) -> None:
    """What the base holds is read through the overlay."""
    assert "verification failed" not in run("qemu-io", "-r", "-c", "read -P 7 0 1M", str(path))


NAMERS: Mapping[str, Callable[[Yard, Path], Callable[[], None]]] = {
    "volume": _volume,
    "transient": _transient,
    "next start": _next_start,
    "snapshot": _snapshot,
    "managed save": _managed_save,
    "save": _saved,
    "json": _json,
    "relative": _relative,
    "symlink": _symlink,
    "hard link": _hard_link,
    "exported": _exported,
    "drive": _template_drive,
}
