"""Lab guests: makes them, reads their acknowledgements, commands them, and judges their disks."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import libvirt
from lxml import etree

from vmferry.errors import LabLate, LabPlaceUnfit, NoSuchDisk, NoSuchVm
from vmferry.lab.guests.bare import bare_boot
from vmferry.lab.guests.boot import prepare_boot
from vmferry.lab.guests.console import Ack, Console
from vmferry.lab.guests.disks import DiskSpec, make_disk
from vmferry.lab.guests.domain import COMMANDS, CONSOLE, GuestFiles, GuestSpec, domain_xml
from vmferry.lab.guests.secrets import define_secret, forget_secret, secret_of
from vmferry.lab.guests.verdict import GuestVerdict, judge, read_region
from vmferry.lab.programs import wait_for

if TYPE_CHECKING:
    from vmferry.lab.hosts.host import LabHost

START_DEADLINE_S = 180  # a UEFI guest under tcg took 90 s on two cores with a load of 10
FORGET_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
ANSWER_S = 3  # a guest under tcg on a busy machine answers in less; then the command is sent again


@dataclass
class LabGuest:
    """A guest of a lab, whichever process made it; its files are known even while the VM is away."""

    host: LabHost
    spec: GuestSpec
    place: GuestFiles
    console: Console

    # -- making

    @classmethod
    def make(cls, host: LabHost, spec: GuestSpec) -> Self:
        """Make the disks (in STORAGE/NAME/), define or create the VM, start it, wait for each disk's first write.

        Raises LabNeeds, LabPlaceUnfit, LabProgramFailed, LabLate.
        """
        boot = bare_boot() if spec.bare else prepare_boot(agent=spec.agent)
        place = _claim_place(host, spec)
        guest = cls(host, spec, place, _console(host, place))
        try:
            for disk in spec.disks:
                make_disk(disk, place.images[disk.target])
            guest._start(domain_xml(spec, place, boot))
        except BaseException:
            guest.remove()
            raise
        return guest

    @classmethod
    def find(cls, host: LabHost, name: str) -> Self:
        """Return the newest guest of this name that the lab has ever made. Raises NoSuchVm if there was none."""
        folders = sorted(host.guest_folder("").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        for folder in reversed(folders):
            with suppress(FileNotFoundError):
                spec, place = _read_down(host, folder)
                if spec.name == name:
                    return cls(host, spec, place, _console(host, place))
        raise NoSuchVm(vm=name, host=host.at)

    def _start(self, xml: str) -> None:
        connection = self.host.connect()
        try:
            for secret in self._secrets():
                define_secret(connection, secret)
            if self.spec.persistent:
                connection.defineXML(xml).create()
            else:
                connection.createXML(xml, 0)
        finally:
            connection.close()
        self.wait_writing()

    def _secrets(self) -> list[str]:
        return [secret_of(self.place.uuid, disk.target) for disk in self.spec.disks if disk.encrypted]

    def wait_writing(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Wait until each disk has acknowledged a write since the guest last came up."""
        wanted, before = {disk.target for disk in self.spec.stamped}, len(self.acks())
        wait_for(
            lambda: {ack.disk for ack in self.acks()[before:]} >= wanted,
            f"{self.spec.name} to write",
            deadline_s,
            self.place.console,
        )

    # -- moving

    def moved_to(self, host: LabHost) -> None:
        """Use the VM, console and commands on another host of the lab from now on."""
        self.console.read()  # between two moves: else nothing tells which words came before the first
        self.host = host
        self.place = replace(self.place, folder=host.guest_folder(self.place.uuid))

    def runs_on(self) -> list[str]:
        """Return the names of the hosts on which libvirtd reports the guest running, not waiting for memory.

        Raises libvirt.libvirtError.
        """
        return [host.name for host in self.host.neighbours() if _is_running(host, self.place.uuid)]

    # -- hearing

    @property
    def name(self) -> str:
        return self.spec.name

    def acks(self) -> list[Ack]:
        """Return every write acknowledged so far, oldest first."""
        return self.console.read().acks

    def wait_acks(self, n_more: int = 20, deadline_s: float = 60) -> int:
        """Wait for `n_more` acknowledged writes. Return how many there are in all."""
        wanted = len(self.acks()) + n_more
        what = f"{n_more} more writes of {self.name}"
        wait_for(lambda: len(self.acks()) >= wanted, what, deadline_s, self.place.console)
        return len(self.acks())

    def wait_edges(self, n_more: int = 2, deadline_s: float = 60) -> None:
        """Wait for `n_more` edges of the host's clock, so that a pause that just ended is in the figures."""
        wanted = self._edges() + n_more
        wait_for(lambda: self._edges() >= wanted, "the guest's clock", deadline_s, self.place.console)

    def pause_by_clock(self) -> float:
        """Return the longest time, in seconds, that the guest was stopped, by its own clock against the host's."""
        return self.console.read().longest_pause_s

    def stall(self) -> float:
        """Return the longest time, in seconds of the guest's clock, between two acknowledged writes of one disk."""
        return self.console.read().longest_gap_us / 1e6

    def wait_notes(self, n_more: int = 5, deadline_s: float = 60) -> int:
        """Wait for `n_more` notes on the guest's own file system. Return the newest one's number."""
        wanted = self.console.read().noted + n_more
        wait_for(lambda: self.console.read().noted >= wanted, "notes", deadline_s, self.place.console)
        return self.console.noted

    def errors(self) -> list[str]:
        """Return the guest's complaints: failed writes, memory that changed by itself."""
        return self.console.read().errors

    def _edges(self) -> int:
        return sum(map(len, self.console.read().runs))

    # -- commanding

    def command(self, words: str, deadline_s: float = 60) -> None:
        """Send the guest a command, `stop`, `go`, `rate N`, `poweroff` (see guest/main.c); wait until it confirms it.

        Raises LabLate.
        """
        sequence = uuid.uuid4().hex[:8]
        for _ in range(max(1, int(deadline_s / ANSWER_S))):
            self._send(f"{sequence} {words}\n")
            with suppress(LabLate):
                wait_for(lambda: sequence in self.console.read().done, words, ANSWER_S)
                return
        raise LabLate(deadline_s=deadline_s, what=f"{self.name} to obey `{words}`", evidence=self.place.console)

    def stop_writing(self) -> None:
        """Let the guest finish the writes in flight and make no more."""
        self.command("stop")

    def go_on_writing(self) -> None:
        """Let the guest write again."""
        self.command("go")

    def _send(self, line: str) -> None:
        with suppress(OSError):  # no QEMU has the pipe open just now: between save and restore, say
            pipe = os.open(f"{self.place.commands}.in", os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(pipe, line.encode())
            finally:
                os.close(pipe)

    # -- judging

    def verdict(self, images: Mapping[str, Path | str] | None = None) -> GuestVerdict:
        """Compare the acknowledged writes with the disks: the given images by target, or those that the VM has now.

        The VM must be off or paused, or the images copies; only whole acknowledgements of before the call count.
        """
        console = self.console.read()
        acks, erasures = list(console.acks), list(console.erasures)
        images = images or self.images()
        regions = {disk.target: read_region(disk, images[disk.target]) for disk in self.spec.stamped}
        return replace(
            judge(acks, regions, erasures),
            longest_pause_s=console.longest_pause_s,
            longest_stall_s=self.stall(),
            second_writers=len(console.second_writers),
        )

    def images(self) -> dict[str, Path | str]:
        """Return the active image of each disk, by target, from libvirt; as made, if libvirt knows the VM no more."""
        connection = self.host.connect()
        try:
            domain = _domain(connection, self.place.uuid)
            tree = None if domain is None else etree.fromstring(domain.XMLDesc())
        finally:
            connection.close()
        if tree is None:
            return dict(self.place.images)
        return {d.target: _source(tree, d.target) for d in self.spec.disks}

    # -- ending

    def remove(self) -> None:
        """Power the VM off hard, forget it on every host, and remove its folders; no error if they are gone already."""
        for host in self.host.neighbours():
            with suppress(libvirt.libvirtError):
                self._forget_on(host)
            host.kill_qemu(self.name)
            for storage in host.storages:
                shutil.rmtree(host.storage(storage) / self.name, ignore_errors=True)
            shutil.rmtree(host.guest_folder(self.place.uuid), ignore_errors=True)

    def _forget_on(self, host: LabHost) -> None:
        connection = host.connect()
        try:
            if domain := _domain(connection, self.place.uuid):
                _remove_domain(domain)
            for secret in self._secrets():
                forget_secret(connection, secret)
        finally:
            connection.close()


def _claim_place(host: LabHost, spec: GuestSpec) -> GuestFiles:
    """Make the guest's folders and pipes. Raises LabPlaceUnfit if a storage has something of that name."""
    uuid_ = str(uuid.uuid4())
    folders = {disk.storage: host.storage(disk.storage) / spec.name for disk in spec.disks}
    if taken := [folder for folder in folders.values() if folder.exists()]:
        raise LabPlaceUnfit(at=taken[0], reason="it exists, and each guest has a folder of its own")
    place = GuestFiles(
        uuid_,
        host.guest_folder(uuid_),
        {disk.target: folders[disk.storage] / disk.file_name for disk in spec.disks},
        host.guest_folder_inside(uuid_),
    )
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    for neighbour in host.neighbours():
        _furnish(neighbour.guest_folder(uuid_), place, spec)
    return place


def _furnish(folder: Path, place: GuestFiles, spec: GuestSpec) -> None:
    """Make a guest's folder on one host, with command pipes and the record by which any process finds it."""
    folder.mkdir()
    for end in (".in", ".out"):
        os.mkfifo(folder / f"{COMMANDS}{end}")
    record = {"uuid": place.uuid, "spec": asdict(spec), "images": place.images}
    new = folder / "guest.json.new"
    new.write_text(json.dumps(record, default=str, indent=2))
    new.replace(folder / "guest.json")


def _console(host: LabHost, place: GuestFiles) -> Console:
    """Return the guest's console, with its files on every host of the lab."""
    files = [neighbour.guest_folder(place.uuid) / CONSOLE for neighbour in host.neighbours()]
    return Console(place.console, tuple(file for file in files if file != place.console))


def _is_running(host: LabHost, uuid_: str) -> bool:
    connection = host.connect()
    try:
        domain = _domain(connection, uuid_)
        return domain is not None and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    finally:
        connection.close()


def _domain(connection: libvirt.virConnect, uuid_: str) -> libvirt.virDomain | None:
    """Return a domain, None if it is not there; libvirt's own lookup would print an error then."""
    return next((d for d in connection.listAllDomains() if d.UUIDString() == uuid_), None)


def _source(tree: etree._Element, target: str) -> Path | str:
    """Return the file or device of one disk in a domain's XML. Raises NoSuchDisk."""
    source = tree.find(f"devices/disk/target[@dev='{target}']/../source")
    if source is None:
        raise NoSuchDisk(vm=tree.findtext("name"), target=target, present="others")
    return source.get("file") or source.get("dev") or ""


def _remove_domain(domain: libvirt.virDomain) -> None:
    persistent = domain.isPersistent()  # asked first: a transient domain is gone once it is destroyed
    if domain.isActive():
        domain.destroy()
    if persistent:
        domain.undefineFlags(FORGET_ALL)


def _read_down(host: LabHost, folder: Path) -> tuple[GuestSpec, GuestFiles]:
    record = json.loads((folder / "guest.json").read_text())
    fields = record["spec"]
    disks = tuple(DiskSpec(**{**d, "backing": d["backing"] and Path(d["backing"])}) for d in fields["disks"])
    spec = GuestSpec(**{**fields, "disks": disks, "cdrom": fields["cdrom"] and Path(fields["cdrom"])})
    images = {target: Path(image) for target, image in record["images"].items()}
    return spec, GuestFiles(record["uuid"], folder, images, host.guest_folder_inside(record["uuid"]))
