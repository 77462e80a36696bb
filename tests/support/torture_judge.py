"""The judges of the torture: what must be so when a job has ended, whatever anybody did meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt
from lxml import etree
from tests.support.torture_acts import DEFINITION, Scene, clones, images, images_in, saved_at
from tests.support.torture_draw import Draw, Report

from vmferry.errors import LabLate, NoSuchVm, VmferryError
from vmferry.lab import DiskSpec, LabGuest, LabHost, wait_for
from vmferry.lab.programs import run

STARTED_S = 120


@dataclass
class Judge:
    """What must be so, whatever anybody did: looked at when the job has ended, or asks for what nobody here can do."""

    scene: Scene
    guest: LabGuest
    hosts: Sequence[LabHost]
    drawn: Draw
    report: Report

    def judge(self) -> None:
        host = self._host()
        if host is None:
            self._undefined()
            return
        if host is not self.guest.host:
            self.guest.moved_to(host)
        with closing(host.connect()) as connection:
            self.scene.domain = connection.lookupByUUIDString(self.guest.place.uuid)
            self._holds()
            self._named(connection)
            self._cloned()
            self._leftovers()
            saved = saved_at(self.scene)
            if saved.exists() and not self.scene.domain.isActive():
                self._loads(lambda: connection.restore(str(saved)), "the state that was saved by hand cannot be loaded")
            elif not self.scene.domain.isActive() and self.scene.domain.hasManagedSaveImage():
                self._loads(self.scene.domain.create, "the managed save cannot be loaded")
            self._writes(connection)

    def _found(self, what: str) -> None:
        self.report.found += [what] if what not in self.report.found else []

    def _host(self) -> LabHost | None:
        """Where libvirt knows the VM, and no placeholder of it; where it runs, if it does."""
        known = []
        for host in self.hosts:
            with closing(host.connect()) as connection, suppress(libvirt.libvirtError):
                domain = connection.lookupByUUIDString(self.guest.place.uuid)
                if domain.isActive() or images(domain, DEFINITION):
                    known.append((bool(domain.isActive()), host))
        if sum(runs for runs, _ in known) > 1:
            self._found("it runs on two hosts")
        return max(known, key=lambda item: item[0])[1] if known else None

    def _undefined(self) -> None:
        """Nobody knows it any more: that is right of one that was undefined, off or on; its disks are there then."""
        if self.drawn.act.words != "undefine" or self.report.libvirt:
            self._found("no host knows the VM any more")
            return
        if lost := [str(image) for image in self.guest.place.images.values() if not self._somewhere(image)]:
            self._found(f"it was undefined, and its disk is nowhere: {', '.join(lost)}")

    def _somewhere(self, image: Path) -> bool:
        folders = [host.storage(name) / self.guest.name for host in self.hosts for name in host.storages]
        return any(image.name == there.name for folder in folders if folder.exists() for there in folder.iterdir())

    def _holds(self) -> None:
        if not self.report.libvirt:
            try:
                self.report.changed = self.drawn.act.gone(self.scene)
            except libvirt.libvirtError as error:
                self.report.changed = str(error)

    def _named(self, connection: libvirt.virConnect) -> None:
        """Every image that the VM, its snapshots or its saved states name is there, and every chain below it."""
        for what, xml in self._definitions(connection):
            root = etree.fromstring(xml)
            for source in root.iterfind(".//disk//source[@file]"):
                path = Path(source.get("file", ""))
                if not path.exists():
                    self._found(f"{what} names {path}, which is not there: {xml}")
                elif trouble := _broken_chain(path):
                    self._found(f"{what} names {path.name}: {trouble}")
        for snapshot in self.scene.domain.listAllSnapshots():
            self._internal(snapshot)

    def _cloned(self) -> None:
        """What somebody made of the VM's image has all that it lies on, and reads as it did."""
        for clone in clones(self.scene):
            then = clone.with_suffix(".then")
            if self.report.libvirt:
                continue
            if trouble := _broken_chain(clone):
                self._found(f"{clone.name} cannot be read: {trouble}")
            elif then.exists() and not _same(clone, then):
                self._found(f"{clone.name} does not read as it did")

    def _definitions(self, connection: libvirt.virConnect) -> Iterator[tuple[str, str]]:
        domain = self.scene.domain
        yield "the VM", domain.XMLDesc(0)
        if domain.isPersistent():
            yield "its definition", domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        for snapshot in domain.listAllSnapshots():
            yield f"snapshot {snapshot.getName()}", snapshot.getXMLDesc(0)
        if domain.hasManagedSaveImage():
            yield "its managed save", domain.managedSaveGetXMLDesc(0)
        if saved_at(self.scene).exists() and not domain.isActive():
            yield "the state saved by hand", connection.saveImageGetXMLDesc(str(saved_at(self.scene)))

    def _internal(self, snapshot: libvirt.virDomainSnapshot) -> None:
        root = etree.fromstring(snapshot.getXMLDesc(0))
        for disk in root.iterfind("./disks/disk[@snapshot='internal']"):
            image = images(self.scene.domain).get(disk.get("name", ""))
            if image is not None and image.exists() and snapshot.getName() not in _snapshots_in(image):
                self._found(f"snapshot {snapshot.getName()} is listed, and not in {image.name}")

    def _leftovers(self) -> None:
        """Of a job that has ended nothing is left that nobody names."""
        if not self.report.outcome.endswith(("done", "undone")):
            return
        named = self.scene.domain.XMLDesc(0) + "".join(s.getXMLDesc(0) for s in self.scene.domain.listAllSnapshots())
        if saved_at(self.scene).exists():
            named += self.scene.domain.connect().saveImageGetXMLDesc(str(saved_at(self.scene)))
        for host in self.hosts:
            for name in host.storages:
                for path in (host.storage(name) / self.guest.name).rglob("*vmferry-*"):
                    tops = [*images(self.scene.domain).values(), *clones(self.scene)]
                    if path.name not in named and not _in_a_chain(path, tops):
                        self._found(f"{path.name} is left over on {name}")

    def _loads(self, load: Callable[[], object], otherwise: str) -> None:
        """The memory of a VM that somebody saved is good still."""
        ups = self.guest.console.read().ups
        try:
            load()
            self.guest.wait_acks(5)
        except (libvirt.libvirtError, LabLate) as error:
            self._found(f"{otherwise}: {error}")
            return
        if self.guest.console.read().ups != ups:
            self._found(f"{otherwise}: it booted anew")

    def _writes(self, connection: libvirt.virConnect) -> None:
        """Every acknowledged write is there, now and after it was started again."""
        domain = self.scene.domain
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        self._end(domain)
        self._verdict(xml)
        try:
            if not _known(connection, self.guest.place.uuid):
                connection.defineXML(xml)
            domain = connection.lookupByUUIDString(self.guest.place.uuid)
            if not domain.isActive():
                domain.create()
            self._wait_written(domain)
        except (libvirt.libvirtError, LabLate) as error:
            self._found(f"it does not start again: {error}")
            return
        self._end(domain)
        self._verdict(domain.XMLDesc(0))

    def _wait_written(self, domain: libvirt.virDomain) -> None:
        """Until each disk that it has now has acknowledged a write."""
        stamped = {disk.target for disk in self.guest.spec.stamped}
        wanted, before = stamped & images(domain).keys(), len(self.guest.acks())
        said = self.guest.place.console
        wait_for(lambda: {a.disk for a in self.guest.acks()[before:]} >= wanted, "it to write", STARTED_S, said)

    def _end(self, domain: libvirt.virDomain) -> None:
        """Shut it down as a person does; one that stands is let run before."""
        try:
            if domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            if domain.isActive():
                shut_down(self.guest, domain)
        except (libvirt.libvirtError, LabLate) as error:
            self._found(f"the guest does not answer: {error}")
            with suppress(libvirt.libvirtError):
                domain.destroy()

    def _verdict(self, xml: str) -> None:
        now = images_in(xml)
        wanted = {disk.target: now.get(disk.target) or self._detached(disk) for disk in self.guest.spec.stamped}
        try:
            verdict = self.guest.verdict({target: path for target, path in wanted.items() if path is not None})
        except VmferryError as error:
            self._found(f"its disks cannot be read: {error}")
            return
        self.report.acknowledged = verdict.acknowledged
        if not verdict.clean:
            self._found(
                f"{verdict.lost} of {verdict.acknowledged} acknowledged writes are lost, {verdict.torn} torn "
                f"({'; '.join(verdict.examples[:2])})"
            )

    def _detached(self, disk: DiskSpec) -> Path | None:
        """Where the image of a disk is that the VM does not have any more: where its name says."""
        image = self.guest.place.images[disk.target]
        moved = [host.storage("san2") / self.guest.name / image.name for host in self.hosts]
        return next((path for path in (image, *moved) if path.exists()), image)


def shut_down(guest: LabGuest, domain: libvirt.virDomain) -> None:
    guest.stop_writing()  # or its kernel may refuse a write while it shuts the disks down
    guest.command("poweroff")
    wait_for(lambda: not _is_active(domain), f"{guest.name} to power off", 60)


def _is_active(domain: libvirt.virDomain) -> bool:
    """One that was undefined while it ran is not known any more once it has ended."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def _known(connection: libvirt.virConnect, uuid: str) -> bool:
    return any(domain.UUIDString() == uuid for domain in connection.listAllDomains())


def _chain(image: Path) -> list[dict[str, object]]:
    return list(json.loads(run("qemu-img", "info", "-U", "--backing-chain", "--output=json", image)))


def _broken_chain(image: Path) -> str:
    try:
        _chain(image)
    except (VmferryError, NoSuchVm) as error:
        return str(error.fields.get("reason", error))
    return ""


def _same(clone: Path, then: Path) -> bool:
    return subprocess.run(["qemu-img", "compare", "-U", clone, then], capture_output=True).returncode == 0


def _in_a_chain(path: Path, tops: Iterable[Path]) -> bool:
    chains = [_chain(top) for top in tops if top.exists() and not _broken_chain(top)]
    return any(str(path) == image.get("filename") for chain in chains for image in chain)


def _snapshots_in(image: Path) -> set[str]:
    found: set[str] = set()
    for each in _chain(image):
        snapshots = each.get("snapshots", [])
        assert isinstance(snapshots, list)
        found |= {str(snapshot["name"]) for snapshot in snapshots}
    return found
