"""What an admin types instead of vmferry, as generously timed as can be: no hash, no comparison, no sync, no undo."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from lxml import etree
from tests.support.nbd_servers import certificates

from vmferry.lab import LabGuest, LabHost
from vmferry.lab.programs import run

from .table import Sample


def blockcopy(lab: LabHost, guest: LabGuest, folder: Path) -> Sample:
    """`virsh blockcopy --wait --pivot` of each disk in turn, and rm of what it leaves.

    The guest's own flushes make its copy durable: an fdatasync afterwards took no time that could be measured.
    """
    began = time.monotonic()
    for disk in guest.spec.disks:
        new = folder / disk.file_name
        words = ("blockcopy", guest.name, disk.target, "--dest", new, "--format", disk.format)
        _virsh(lab, *words, "--wait", "--pivot", "--transient-job")
        guest.place.images[disk.target].unlink()
    return {"whole": time.monotonic() - began}


def migrate_with_storage(guest: LabGuest, there: LabHost, folder: Path, *, tls: bool = False) -> Sample:
    """`virsh migrate --live --copy-storage-all` onto disks made before, and rm of what it leaves.

    With `--tls` memory and disks are encrypted, as ours are; libvirt finds the certificates that certify() made.
    The clock runs for these two alone, not for making the disks and the definitions.
    """
    for disk in guest.spec.disks:
        run("qemu-img", "create", "-q", "-f", disk.format, folder / disk.file_name, f"{disk.size_mib}M")
    beside = Path(guest.images()[guest.spec.disks[0].target]).parent  # where virsh runs: it sees no other host's files
    xml = {name: beside / f"{name}.xml" for name in ("running", "defined")}
    for file, word in zip(xml.values(), ("--migratable", "--inactive"), strict=True):
        file.write_text(_moved(_virsh(guest.host, "dumpxml", guest.name, word), guest, folder))
    images = guest.images()
    words = ["migrate", "--live", "--copy-storage-all", "--persistent", "--undefinesource", *(["--tls"] if tls else [])]
    where = ("--xml", xml["running"], "--persistent-xml", xml["defined"], "--migrateuri", f"tcp://{there.address}")
    began = time.monotonic()
    guest.host.run("virsh", "--quiet", "--connect", guest.host.tcp_uri, *words, *where, guest.name, there.tcp_uri)
    for path in (*images.values(), *xml.values()):
        Path(path).unlink()
    return {"whole": time.monotonic() - began}


def certify(hosts: Sequence[LabHost]) -> None:
    """Let QEMU and libvirt encrypt between these hosts."""
    made = certificates(hosts[0].at / "certificates", [host.address for host in hosts])
    for host in hosts:
        shutil.copytree(made, host.at / "etc/migration", dirs_exist_ok=True)


def save_copy_restore(lab: LabHost, guest: LabGuest, folder: Path) -> Sample:
    """`virsh save`, `cp --sparse=always` of each disk, `virsh restore --xml`; the definitions are ready before."""
    running = _moved(_virsh(lab, "dumpxml", guest.name, "--migratable"), guest, folder)
    defined = _moved(_virsh(lab, "dumpxml", guest.name, "--inactive"), guest, folder)
    memory = folder / "memory"
    xml = {name: folder / f"{name}.xml" for name in ("running", "defined")}
    xml["running"].write_text(running)
    xml["defined"].write_text(defined)

    began = time.monotonic()
    _virsh(lab, "save", guest.name, memory)
    saved = time.monotonic()
    for disk in guest.spec.disks:
        run("cp", "--sparse=always", guest.place.images[disk.target], folder / disk.file_name)
    copied = time.monotonic()
    _virsh(lab, "restore", memory, "--xml", xml["running"])
    restored = time.monotonic()
    _virsh(lab, "define", xml["defined"])
    for path in (memory, *guest.place.images.values()):
        path.unlink(missing_ok=True)
    return {
        "whole": time.monotonic() - began,
        "save": saved - began,
        "copy": copied - saved,
        "restore": restored - copied,
    }


def _moved(xml: str, guest: LabGuest, folder: Path) -> str:
    tree = etree.fromstring(xml)
    for disk in guest.spec.disks:
        source = tree.find(f"devices/disk/target[@dev='{disk.target}']/../source")
        assert source is not None
        source.set("file", str(folder / disk.file_name))
    return etree.tostring(tree, encoding="unicode")


def _virsh(lab: LabHost, *words: str | Path) -> str:
    return run("virsh", "--quiet", "--connect", lab.uri, *words)
